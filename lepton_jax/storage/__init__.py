"""Files of arrays, coded without loss: the `.lepton` file. See docs/storage.md."""

from lepton_jax.storage.errors import LeptonFileError as LeptonFileError
from lepton_jax.storage.inspect import inspect as inspect
from lepton_jax.storage.pack import pack as pack
from lepton_jax.storage.pack import unpack as unpack
from lepton_jax.storage.reader import Reader as Reader
from lepton_jax.storage.safetensors import read_safetensors as read_safetensors
from lepton_jax.storage.safetensors import write_safetensors as write_safetensors
from lepton_jax.storage.transfer import decode as decode
from lepton_jax.storage.transfer import encode as encode
from lepton_jax.storage.writer import Writer as Writer
from lepton_jax.storage.writer import writing as writing
