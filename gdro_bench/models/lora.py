"""Low-rank adapters through peft, on any diffusers transformer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Parameter

from gdro_bench.errors import BenchError, first_line
from gdro_bench.files import write_atomically
from gdro_bench.profile import LoraConfig

ADAPTER = "policy"
BASE = "base.json"
FILE = "pytorch_lora_weights.safetensors"  # diffusers' name
PEFT_FILE, PEFT_PREFIX = "adapter_model.safetensors", "base_model.model"  # peft's, with adapter_config.json beside it


def add_lora(transformer: Any, lora: LoraConfig, seed: int) -> None:
    """Freezes the transformer and adds adapters that start as the identity, their A drawn from `seed`.

    They are float32 whatever the transformer is, because an update of 3e-4 is lost in bfloat16; their products are in
    its dtype.

    Raises:
        BenchError: the transformer has none of the targets, or peft does not work with another package's version,
            whether the run needs that package or not.
    """
    import peft
    from diffusers.training_utils import cast_training_params

    transformer.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = peft.LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), init_lora_weights="gaussian"
        )
        try:
            transformer.add_adapter(config, adapter_name=ADAPTER)
        except ImportError as error:  # an old torchao, for one, is asked after at every layer
            raise BenchError(
                f"peft cannot add adapters: {first_line(error)}.",
                "Install what it asks for, or take that package away.",
            ) from error
    cast_training_params(transformer, torch.float32)
    _multiply_in_input_dtype(transformer)


def load_lora(transformer: Any, folder: Path, prefix: str | None = None) -> None:
    """Puts saved adapters on a transformer; `prefix` is what their names in diffusers' file begin with, if with
    anything. A folder as peft's `save_pretrained` writes it, such as those that Flow-GRPO's code publishes, does, too.

    diffusers rounds them to the transformer's dtype, so they are put into float32 ones once more. As diffusers does, it
    takes adapters without settings of their own to have alpha = rank.

    Raises:
        BenchError: the folder holds none, or they do not fit the model.
    """
    if not folder.is_dir():
        raise BenchError(f"There is no folder {folder}.", f"Give one with {FILE}, such as the lora/ of a finished run.")
    try:
        found = _put_on(transformer, folder, prefix)
    except Exception as error:  # diffusers and peft raise whatever they meet
        raise BenchError(
            f"The adapters in {folder} cannot be loaded: {error}.",
            f"Give a folder with {FILE}, such as the lora/ of a finished run, or one that peft saved.",
        ) from error
    absent = [name for name in found.missing_keys if "lora_" in name] + _without_adapters(transformer)
    if absent:
        raise BenchError(
            f"The adapters in {folder} are not whole: {len(absent)} of them are missing, {absent[0]} among them.",
            "Give the whole file.",
        )
    if found.unexpected_keys or not any(True for _ in lora_parameters(transformer)):
        strange = found.unexpected_keys[:1] or ["none of them"]
        raise BenchError(
            f"The adapters in {folder} are not of this model's transformer: it has no place for {strange[0]}.",
            "Give those of a run on it. A text encoder's adapters are not used here: take them out of the file.",
        )


def _put_on(transformer: Any, folder: Path, prefix: str | None) -> Any:
    """What peft found missing and unexpected."""
    from diffusers.training_utils import cast_training_params
    from peft import set_peft_model_state_dict

    path = folder / FILE
    if not path.exists() and (folder / PEFT_FILE).exists():
        path, prefix = folder / PEFT_FILE, PEFT_PREFIX
        transformer.add_adapter(_peft_config(folder), adapter_name=ADAPTER)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "While injecting the PEFT adapters", RuntimeWarning)  # told by the caller
            transformer.load_lora_adapter(folder, prefix=prefix, adapter_name=ADAPTER, use_safetensors=True)
    cast_training_params(transformer, torch.float32)
    exact = {name.removeprefix(f"{prefix}."): weights for name, weights in load_file(path).items()}
    found = set_peft_model_state_dict(transformer, exact, adapter_name=ADAPTER)
    _multiply_in_input_dtype(transformer)
    return found


def _peft_config(folder: Path) -> Any:
    """The adapters' settings as peft saved them: rank, alpha and where they sit.

    Raises:
        ValueError: they are not plain LoRA's.
    """
    import peft

    config = peft.PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, peft.LoraConfig) or config.use_dora:
        raise ValueError("they are of another kind than LoRA")
    config.inference_mode = False  # peft would freeze them, and leave them in the transformer's dtype
    config.init_lora_weights = True  # not by whatever they began with: they are replaced
    return config


def _without_adapters(transformer: Any) -> list[str]:
    """Modules that the adapters' own settings say they are for, where they were saved, and that have none."""
    from peft.tuners.lora import LoraLayer

    targets = transformer.peft_config[ADAPTER].target_modules
    endings = tuple(f".{target}" for target in ([] if isinstance(targets, str) else targets or []))
    return [
        name
        for name, module in transformer.named_modules()
        if f".{name}".endswith(endings) and isinstance(module, torch.nn.Linear) and not isinstance(module, LoraLayer)
    ]


class _InputDtypeLinear(torch.nn.Linear):
    """Float32 weights, used in the dtype of what comes in; their gradients are float32 again."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.nn.functional.linear(input, self.weight.to(input.dtype))


def _multiply_in_input_dtype(transformer: Any) -> None:
    """Else peft keeps a float32 copy of every adapter's input: 2.8 GB of the 9.5 that an image of FLUX.1-dev saves."""
    from peft.tuners.lora import LoraLayer

    for layer in transformer.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = False
            for factors in (layer.lora_A, layer.lora_B):
                factors[ADAPTER].__class__ = _InputDtypeLinear  # its parameters keep their names


def lora_parameters(transformer: Any) -> Iterator[Parameter]:
    return (p for name, p in transformer.named_parameters() if "lora_" in name)


@contextmanager
def adapters_off(transformer: Any) -> Iterator[None]:
    """Inside, the transformer is the reference model. The layers' own switch alone is turned: diffusers' function walks
    all modules and changes what wants a gradient, at every step of a reference's sampling."""
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in transformer.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@contextmanager
def adapters_replaced(transformer: Any, values: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the adapters have these values, in the order of `lora_parameters`. Nothing is copied."""
    parameters = list(lora_parameters(transformer))
    kept = [parameter.data for parameter in parameters]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.data = value
    try:
        yield
    finally:
        for parameter, before in zip(parameters, kept, strict=True):
            parameter.data = before


@contextmanager
def adapters_merged(transformer: Any) -> Iterator[None]:
    """Inside, each adapted matrix is W + BA in one product: for sampling without gradient.

    Float32 weights alone: bfloat16 would round away most of BA, and shards and float8 cannot be added to, so there
    nothing changes. W itself comes back to the last bit, which peft's own unmerging does not promise.
    """
    from peft.tuners.lora import LoraLayer

    adapted = [layer for layer in transformer.modules() if isinstance(layer, LoraLayer)]
    weights = [layer.get_base_layer().weight for layer in adapted]
    if any(type(weight) is not Parameter or weight.dtype != torch.float32 for weight in weights):
        yield
        return
    kept = [weight.detach().clone() for weight in weights]
    try:
        for layer in adapted:
            layer.merge()
        yield
    finally:
        for layer, weight, before in zip(adapted, weights, kept, strict=True):
            layer.merged_adapters.clear()
            weight.data.copy_(before)


@contextmanager
def adapters_scaled(transformer: Any, factor: float) -> Iterator[None]:
    """Inside, the adapters' updates are multiplied by `factor`: W + factor * BA alpha / rank. 0 is the base, 1 changes
    nothing, both to the last bit."""
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in transformer.modules() if isinstance(layer, LoraLayer)]
    scales = [layer.scaling[ADAPTER] for layer in layers]
    try:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scaling[ADAPTER] = factor * scale
        yield
    finally:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scaling[ADAPTER] = scale


def save_lora(transformer: Any, folder: Path) -> None:
    """Writes the adapters as safetensors that diffusers' `load_lora_adapter` reads."""
    transformer.save_lora_adapter(folder, adapter_name=ADAPTER)
    settle(folder)


def settle(folder: Path) -> None:
    """Makes the same adapters the same bytes: peft's target modules are a set, which each process orders otherwise.

    A safetensors file is the length of its header (8 bytes), the header as JSON, and the weights.
    """
    path = folder / FILE
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    said = header.get("__metadata__", {})
    header["__metadata__"] = {name: _settled(said[name]) for name in sorted(said)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # weights begin at a multiple of 8
    write_atomically(path, len(text).to_bytes(8, "little") + text + whole[end:])


def _settled(text: str) -> str:
    """An entry of the header; of the adapters' settings, which are JSON, the target modules in order."""
    try:
        settings = json.loads(text)
    except ValueError:
        return text
    modules = {name: sorted(value) for name, value in settings.items() if name.endswith("target_modules")}
    return json.dumps(settings | modules, indent=2, sort_keys=True)


def note_base(folder: Path, base: str) -> None:
    """Notes beside saved adapters which model they were trained on."""
    write_atomically(folder / BASE, json.dumps({"base": base}).encode())


def check_base(folder: Path, base: str) -> None:
    """Adapters without a note are taken as they are.

    Raises:
        BenchError: they were trained on another model.
    """
    path = folder / BASE
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))["base"] if path.exists() else base
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{path} is damaged: {error}.", "Delete it to load the adapters unchecked.") from error
    if noted != base:
        raise BenchError(
            f"The adapters in {folder} were trained on {noted}, not on {base}.",
            "Choose the task or profile that they were trained with, or give their base by --weights.",
        )
