"""The grid of trials: every kernel of the catalogue, one module an op."""

from __future__ import annotations

from collections.abc import Callable

from handgrad.proof.trials import (
    activation,
    batch,
    linear,
    loss,
    optimizer,
    two_layer_epoch,
    two_layer_general,
    two_layer_pair,
    two_layer_reduce,
    two_layer_step,
)
from handgrad.proof.trials.trial import Trial

TRIALS: dict[str, Callable[[str, bool], list[Trial]]] = {
    "activation.forward": activation.forward_trials,
    "activation.backward": activation.backward_trials,
    "batch.gather": batch.gather_trials,
    "linear.forward": linear.forward_trials,
    "linear.backward_input": linear.backward_input_trials,
    "linear.backward_weight": linear.backward_weight_trials,
    "linear.reduce_partials": linear.reduce_trials,
    "loss.elementwise": loss.elementwise_trials,
    "loss.rows": loss.rows_trials,
    "optimizer.squares": optimizer.squares_trials,
    "optimizer.update": optimizer.update_trials,
    "two_layer.general_hidden": two_layer_general.hidden_trials,
    "two_layer.general_output": two_layer_general.output_trials,
    "two_layer.general_output_wide": two_layer_general.output_wide_trials,
    "two_layer.general_weight": two_layer_general.weight_trials,
    "two_layer.reduce": two_layer_reduce.reduce_trials,
    "two_layer.step": two_layer_step.step_trials,
    "two_layer.pair_forward": two_layer_pair.forward_trials,
    "two_layer.pair_backward": two_layer_pair.backward_trials,
    "two_layer.epoch": two_layer_epoch.epoch_trials,
}
DTYPES = ("float32", "float64", "int32")


def trials(op: str, dtype: str, quick: bool) -> list[Trial]:
    """The trials of one kernel in one type, without repetitions; none where it has no such type."""
    if dtype == "int32" and op != "batch.gather":
        return []
    return list({str(trial): trial for trial in TRIALS[op](dtype, quick)}.values())


__all__ = ["DTYPES", "TRIALS", "Trial", "trials"]
