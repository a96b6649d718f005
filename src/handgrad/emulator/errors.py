"""The emulator's errors: each message is one line."""

from __future__ import annotations


class EmulatorError(RuntimeError):
    """A kernel did not compile, did not fit the architecture, or did something that a GPU forbids.

    ``fault`` names what it did: "synchronisation", "memory", "races", "initialisation", or "other".
    """

    def __init__(self, message: str, fault: str = "other") -> None:
        super().__init__(message)
        self.fault = fault


class LaunchError(EmulatorError):
    """A launch that the architecture does not allow."""


class CompilerNotFound(RuntimeError):
    """No C++ compiler that the emulator can use; the message says what to install."""
