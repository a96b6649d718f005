"""The words that options take.  ``tests/test_cli.py`` holds them equal to what the library knows."""

from enum import StrEnum


class Activation(StrEnum):
    relu = "relu"
    sigmoid = "sigmoid"
    tanh = "tanh"
    softplus = "softplus"
    identity = "identity"


class Loss(StrEnum):
    mse = "mse"
    bce = "bce"
    cross_entropy = "cross_entropy"
    hinge = "hinge"


class Optimizer(StrEnum):
    sgd = "sgd"
    momentum = "momentum"
    nesterov = "nesterov"
    adam = "adam"
    adamw = "adamw"


class Schedule(StrEnum):
    constant = "constant"
    step = "step"
    cosine = "cosine"


class OnNonfinite(StrEnum):
    stop = "stop"
    skip = "skip"
    ignore = "ignore"


class Dtype(StrEnum):
    float32 = "float32"
    float64 = "float64"


class Task(StrEnum):
    auto = "auto"
    classification = "classification"
    regression = "regression"
