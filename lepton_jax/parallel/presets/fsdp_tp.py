"""`fsdp+tp`: layers split over one axis as in `tp`, what is left of parameters over another as in `fsdp`."""

from __future__ import annotations

from lepton_jax.parallel.presets.arrangement import Arrangement, PresetError, Work
from lepton_jax.parallel.presets.batch import find_batch, pin_batch, pin_sums, split_batch
from lepton_jax.parallel.presets.fsdp import in_parts
from lepton_jax.parallel.presets.tp import layouts, split_model


def arrange(work: Work) -> Arrangement:
    """Split the model over the model's axes, the batch and the parameters over those that are left.

    Raises:
        PresetError: the mesh has one axis only, or there is nothing to split.
    """
    model = work.axes.model()
    data = tuple(name for name in work.axes.shard() if name not in model)
    if not data:
        raise PresetError(
            "shard='fsdp+tp' needs two mesh axes of more than one device, one for the model and one for the "
            f"data, as in 'data=2,model=4'; the mesh is {work.mesh}"
        )
    choice = split_model(work, model, "fsdp+tp")
    batch = find_batch(work)
    over = split_batch(work, batch, work.axes.besides(model), needed="fsdp+tp")
    classes = dict.fromkeys(choice.classes, model)
    pin_batch(work, batch, over, classes, choice.together)
    pin_sums(work, batch, over, classes, choice.together)
    return work.finished(in_parts(work, data, layouts(work, choice, model)))
