"""Whether a checkpoint is of the step that is to be continued: asked before anything is taken from it."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import TrainConfig
from ..errors import UserError
from ..methods.base import Method, StepContext
from ..shapes import Shape, expect
from .checkpoint import AGAIN, Checkpoint

Tensors = Mapping[str, Tensor]
_POSITIVE = ("scale", "growth_factor", "backoff_factor", "growth_interval")
_SCALER: Shape = {**{f"{name}?": float for name in _POSITIVE}, "_growth_tracker?": range(1 << 31)}


def model_tensors(ctx: StepContext) -> dict[str, Tensor]:
    """The student's weights and buffers that a checkpoint holds: all but a frozen trunk's."""
    return {
        name: value
        for name, value in ctx.model.state_dict().items()
        if not (ctx.shares_trunk and name.startswith("trunk."))
    }


def optimizer_state(optimizer: torch.optim.Optimizer, momentum: float) -> dict[str, Any]:
    """The state dict; what no gradient has moved yet has a momentum of zeros, which is the same."""
    stored = optimizer.state_dict()
    if momentum:
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        for k, parameter in enumerate(parameters):
            stored["state"].setdefault(k, {"momentum_buffer": torch.zeros_like(parameter)})
    return stored


def fits(
    method: Method, ctx: StepContext, train: TrainConfig, epochs: int, updates: int
) -> Callable[[Checkpoint, str], None]:
    """What refuses a checkpoint that this step did not write.

    Args:
        method: Its `begin_step` has been called on `ctx`.
        ctx: The step.
        epochs: Of the whole step.
        updates: Of the whole step.

    Returns:
        A function of a checkpoint and of its name for errors. It raises UserError, which says what differs.
    """
    model = ctx.model.state_dict()
    needed = model_tensors(ctx)
    groups = method.parameter_groups(ctx, 1.0, 1.0) if train.momentum else []
    parameters: list[Tensor] = [p for group in groups for p in group["params"]]
    state = {f"{k}.momentum_buffer": parameter for k, parameter in enumerate(parameters)}

    def check(found: Checkpoint, where: str) -> None:
        if not 1 <= found.epoch <= epochs or found.seconds < 0:
            raise UserError(f"{where} is after epoch {found.epoch} of {epochs}, {found.seconds} s; {AGAIN}")
        if not set(found.precision.split(", then ")) <= {"", "32", "bf16", "16"}:
            raise UserError(f"{where} was trained in precision {found.precision[:40]!r}; {AGAIN}")
        _check_tensors(found.model, needed, model, f"{where}: model")
        _check_tensors(_flat(found.optimizer["state"]), state, state, f"{where}: optimizer")
        expect(found.scaler, _SCALER, f"{where}: scaler", AGAIN)
        if not all(found.scaler.get(name, 1.0) > 0 for name in _POSITIVE):
            raise UserError(f"{where}: scaler holds a number that is not above 0; {AGAIN}")
        _check_selection(found.selected, model, train, updates, where)
        _check_method(found.method, method, ctx, where)

    return check


def _flat(state: dict[Any, Any]) -> dict[str, Any]:
    """The optimizer's state as one mapping; what holds no mapping keeps the name of its parameter."""
    flat: dict[str, Any] = {}
    for k, one in state.items():
        inner = {f".{name}": value for name, value in one.items()} if isinstance(one, dict) else {"": one}
        flat |= {f"{k!r}{name}": value for name, value in inner.items()}
    return flat


def _check_tensors(found: Mapping[str, Any], needed: Tensors, allowed: Tensors, where: str) -> None:
    """Compare names, shapes and kinds of numbers; all must be finite."""
    if lacking := sorted(needed.keys() - found.keys()):
        raise UserError(f"{where} lacks {lacking[0]}; {AGAIN}")
    if more := sorted(str(name) for name in found.keys() - allowed.keys()):
        raise UserError(f"{where} has {more[0][:60]}, which the network lacks; {AGAIN}")
    for name, value in found.items():
        expected = allowed[name]
        if (got := _kind(value)) != (right := _kind(expected)):
            raise UserError(f"{where}: {name} is {got}, expected {right}; {AGAIN}")
        if not bool(value.isfinite().all()):
            raise UserError(f"{where}: {name} is not finite; {AGAIN}")


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    sparse = "" if value.layout == torch.strided else f", {value.layout}"
    return f"{tuple(value.shape)} of {value.dtype}{sparse}"


def _check_selection(
    found: Mapping[str, Any], model: Tensors, train: TrainConfig, updates: int, where: str
) -> None:
    if bool(found) != (train.select == "best"):
        raise UserError(f"{where} {'has' if found else 'lacks'} weights chosen so far; {AGAIN}")
    if found:
        scored = found["score"] is not None
        if (
            found["update"] > updates
            or scored != (found["update"] > 0)
            or not 0 <= (found["score"] or 0) <= 1
        ):
            stood = f"update {found['update']} of {updates}, score {found['score']}"
            raise UserError(f"{where}: selected holds {stood}; {AGAIN}")
        _check_tensors(found["weights"], model, model, f"{where}: selected")


def _check_method(found: Tensors, method: Method, ctx: StepContext, where: str) -> None:
    """A copy of the method takes the state: the method itself is as it was when another is used."""
    tried = copy.deepcopy(method)
    try:
        tried.load_state_dict({name: value.to(ctx.model.mean.device) for name, value in found.items()})
        tried.check_state(ctx)
    except UserError as error:
        raise UserError(f"{where}: {str(error).removesuffix('; copy the model again')}; {AGAIN}") from None
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where}: method {method.name} cannot take its state ({reason}); {AGAIN}") from None
