"""Distillation: a student learns what a teacher computes.

`lepton.distill` is the loop; here are its parts: terms of the loss, the loss for a loop of your own, the
losses as functions of arrays (`losses`, `relations`), and `capture`, which reads values inside functions.
"""

from lepton_jax.distill import losses as losses
from lepton_jax.distill import relations as relations
from lepton_jax.distill._capture import At as At
from lepton_jax.distill._capture import capture as capture
from lepton_jax.distill._capture import scopes as scopes
from lepton_jax.distill._loop import distill as distill
from lepton_jax.distill._objective import Aux as Aux
from lepton_jax.distill._objective import Loss as Loss
from lepton_jax.distill._objective import loss as loss
from lepton_jax.distill._result import Best as Best
from lepton_jax.distill._result import Distilled as Distilled
from lepton_jax.distill._result import Record as Record
from lepton_jax.distill._term import Batch as Batch
from lepton_jax.distill._term import Side as Side
from lepton_jax.distill._term import Term as Term
from lepton_jax.distill.terms import Attention as Attention
from lepton_jax.distill.terms import AttentionMaps as AttentionMaps
from lepton_jax.distill.terms import Contrastive as Contrastive
from lepton_jax.distill.terms import Decoupled as Decoupled
from lepton_jax.distill.terms import Features as Features
from lepton_jax.distill.terms import Labels as Labels
from lepton_jax.distill.terms import Logits as Logits
from lepton_jax.distill.terms import Relations as Relations
from lepton_jax.distill.terms import TokenRelations as TokenRelations
