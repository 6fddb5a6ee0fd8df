"""What can go wrong with pipelines, passes and rules."""

from __future__ import annotations


class LeptonError(Exception):
    """The base of all errors that Lepton raises itself."""


class PipelineError(LeptonError, ValueError):
    """A pipeline's text is wrong: unknown pass, unknown option, wrong type, bad syntax."""


class RegistryError(LeptonError):
    """Two passes have the same name, or an entry point does not lead to a pass."""


class UsageError(LeptonError, ValueError):
    """What a pass was told does not fit the program: the user's to mend, so the pass is not skipped."""


class PassError(LeptonError):
    """A pass failed. The message names the pass and the reproducer."""


class RuleError(LeptonError):
    """A rule is wrong in itself: its replacement has another shape or dtype than its pattern."""


class RewriteLoop(LeptonError):
    """Rules undo each other's work without end. The message names them."""
