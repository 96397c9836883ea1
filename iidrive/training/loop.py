"""The training loop. It needs a model with a loss, the module to train, and a dataset of clips. Progress is counted in samples seen.

The result does not depend on the number of processes. The samples of a step depend only on the seed and the step's number. The loss is
divided by counts over the global batch. Gradients of all micro-batches and processes are summed before clipping and the optimiser step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from iidrive.core.batch import Batch
from iidrive.core.errors import IIDriveError
from iidrive.data.clips import ClipDataset
from iidrive.models.layers import BatchNorm
from iidrive.runtime.distributed import ProcessGroup, SharedError
from iidrive.runtime.run_folder import Run, allow_tf32, device, repeat_bits
from iidrive.training import checkpoint
from iidrive.training.optim import TrainConfig, learning_rate
from iidrive.training.options import Request, RunOptions, StopRequested, stop_requests
from iidrive.training.prefetch import Order, Step, Steps, feed
from iidrive.training.progress import Progress
from iidrive.training.state import State, TrainTask


def fit(task: TrainTask, clips: ClipDataset, config: TrainConfig, run: Run, options: RunOptions | None = None) -> Path:
    """Train until `config.samples` samples have been seen. Returns the last checkpoint, whose weights are loaded into the module.

    Raises:
        IIDriveError: if the loss is not finite or a sample cannot be read, naming the step and its samples. Checkpoints remain intact.
        StopRequested: if a signal asked to stop. A checkpoint was written.
    """
    options = options or RunOptions()
    process_group, place = options.process_group, device()
    repeat_bits(options.parallel.deterministic)
    parts = options.parallel.parts(config, process_group)
    state = State.start(task, config, place)
    if options.parallel.compile:
        for part in task.model.compute_modules():
            part.compile(dynamic=False)
    if options.resume == "on" or (options.resume == "auto" and checkpoint.newest_first(run.folder)):
        with process_group.raise_on_all_ranks():
            state.resume(run)
        with process_group.raise_on_all_ranks():
            for path in checkpoint.newest_first(run.folder) if process_group.is_rank_zero else ():
                if path.name > checkpoint.name(state.seen):  # damaged; it would be tried first again
                    checkpoint.remove(path)
    else:
        with process_group.raise_on_all_ranks():
            run.drop_logs_after(0)
    steps = Steps(clips, Order(config.seed, config.batch, config.samples), parts)
    if state.seen == 0 and task.prepare is not None:
        first = Steps(clips, steps.order, [range(min(config.batch, 8))])[0]
        if isinstance(first, IIDriveError):
            raise first
        task.prepare(_ready(first[0], state, place))
    _share_start(task.module, process_group)
    end = config.samples if options.stop_at is None else min(options.stop_at, config.samples)
    logs: dict[str, float] = {}
    path: Path | None = None
    allow_tf32(config.precision == "tf32")
    run.note_tf32()
    task.model.train()
    with stop_requests() as request, Progress(task.name, config, run, options, state.seen) as progress:
        fed = iter(feed(steps, steps.order.steps(state.seen, end), options.parallel.workers_for(place)))
        while state.seen < end:
            made, problem = _next(fed)
            stop = _agree(process_group, request, problem)
            if stop or problem is not None:
                if path is None or path.name != checkpoint.name(state.seen):
                    _save(state, run, logs, process_group)
                _end(process_group, stop, problem, state.seen, steps)
            for group in state.optimiser.param_groups:
                group["lr"] = learning_rate(config, state.seen)
            allow_tf32(config.precision == "tf32")
            try:
                logs = _step(state, [_ready(part, state, place) for part in made or []], steps, run, process_group)
            except torch.OutOfMemoryError:
                raise IIDriveError(options.parallel.out_of_memory(config, _stage(state), len(parts[0]))) from None
            except RuntimeError as error:
                if not (options.parallel.deterministic and "deterministic" in str(error)):
                    raise
                what = str(error).split(".")[0]
                raise IIDriveError(
                    f"this GPU has no deterministic version of an operation ({what}): use --parallel.deterministic off, or train on a CPU."
                ) from None
            state.seen += config.batch
            if state.ema is not None:
                state.ema.update(task.module, state.seen // config.batch)
            progress.step(state.seen, logs)
            if task.validate is not None and _due(state.seen, config.validate_every, config, end):
                try:
                    logs |= _validate(state, run, process_group)
                except torch.OutOfMemoryError:
                    if process_group.size == 1:  # the other ranks are elsewhere, and would not take part
                        _save(state, run, logs, process_group)
                    raise IIDriveError(_out_of_memory_in_validation(state, process_group)) from None
            if state.seen >= end or _due(state.seen, config.save_every, config, end):
                path = _save(state, run, logs, process_group)
    task.model.eval()
    task.module.load_state_dict(dict(state.weights))
    device()  # disables TF32, which the training may have used
    return path or checkpoint.find(run.folder)


def _share_start(module: nn.Module, process_group: ProcessGroup) -> None:
    """Broadcast the weights of rank 0: different GPU models may have prepared different codebooks."""
    if process_group.size > 1:
        start = {key: value.cpu() for key, value in module.state_dict().items()} if process_group.is_rank_zero else {}
        module.load_state_dict(process_group.broadcast(start))


def _due(seen: int, every: int, config: TrainConfig, end: int) -> bool:
    """Whether an action that is due `every` so many samples (0 for never) is due now. It is also due at the end."""
    return bool(every) and (seen % every < config.batch or seen >= end)


def _ready(part: Batch, state: State, place: torch.device) -> Batch:
    return part.to(place) if state.precision.dtype == torch.float32 else part.to(place).as_type(state.precision.dtype)


def _next(fed: object) -> tuple[Step | None, IIDriveError | None]:
    try:
        return next(fed), None  # pyright: ignore[reportArgumentType, reportCallIssue]
    except IIDriveError as error:
        return None, error
    except RuntimeError as error:  # a worker process died
        return None, IIDriveError(f"a data loading worker died ({str(error).splitlines()[0]}); provide more memory or use fewer workers.")


def _agree(process_group: ProcessGroup, request: Request, problem: IIDriveError | None) -> int:
    """Agree on whether to stop. Returns the number of the signal to stop for, 0 to continue, or -1 if a rank has a problem."""
    if process_group.size == 1:
        return request.number
    told = process_group.sum(torch.tensor([float(request.number > 0), float(problem is not None)]))
    if not bool(told.any()):
        return 0
    return max(process_group.gather(request.number)) or -1


def _end(process_group: ProcessGroup, stop: int, problem: IIDriveError | None, seen: int, steps: Steps) -> None:
    """End the training after a checkpoint was saved, with the same error on every rank."""
    if stop > 0:
        request = Request(stop)
        raise StopRequested(f"stopped by {request.name} after {seen} samples, and saved. Continue with `--resume on`.", 128 + stop)
    told = next(text for text in process_group.gather(str(problem) if problem else "") if text)
    step = seen // steps.order.batch
    message = (
        f"the batch after {seen} samples (step {step}) cannot be read: {told} The training so far is saved; repair the data and continue "
        "with `--resume on`."
    )
    raise (SharedError if process_group.size > 1 else type(problem or SharedError("")))(message)


def _stage(state: State) -> str:
    """Name of the trained stage in recipes."""
    return state.task.name.replace("-", "_")


def _remedy(state: State, run: Run) -> str:
    """Advice for a training that diverged. It names a checkpoint only if there is one."""
    found = checkpoint.newest_first(run.folder)
    lower = f"--recipe.train_{_stage(state)}.learning_rate {state.config.learning_rate / 2:g}"
    if not found:
        return f"There is no checkpoint yet: start again with a lower learning rate ({lower})."
    return (
        f"Continue from {found[0].name} with a lower learning rate: `--resume on {lower}`. If it diverges again, that checkpoint was already "
        "diverging: delete it to continue from the one before."
    )


def _step(state: State, parts: Sequence[Batch], steps: Steps, run: Run, process_group: ProcessGroup) -> dict[str, float]:
    """One optimiser step. Returns the loss and its parts over the global batch."""
    task, config = state.task, state.config
    counts = None if config.group else _counts(task, parts, process_group)
    share = config.group / config.batch if config.group else 1.0
    totals: dict[str, Tensor] = {}
    state.optimiser.zero_grad(set_to_none=True)
    for part in parts:
        loss, logs = task.model.loss(part, counts)
        state.precision.backward(loss * share)
        for key, value in {"loss": loss, **logs}.items():
            totals[key] = totals.get(key, torch.zeros_like(value)) + value.detach() * share
    parameters = [p for p in task.module.parameters() if p.requires_grad]
    names = sorted(totals)
    values = _summed(parameters, torch.stack([totals[name].to(parameters[0].dtype) for name in names]), process_group)
    scaler = state.precision.scaler
    if scaler is not None:
        scaler.unscale_(state.optimiser)
    norm = _clipped(parameters, task.clipped_separately, config.max_grad_norm)
    *read, length = _read(torch.cat([values, norm[None]]))
    found = dict(zip(names, read, strict=True))
    if not math.isfinite(found["loss"]):
        tokens = ", ".join(steps.tokens(state.seen // config.batch)[:4])
        raise SharedError(
            f"the loss became {found['loss']} after {state.seen} samples (batch of {tokens} …; parts {found}). {_remedy(state, run)}"
        )
    if scaler is not None:
        scaler.step(state.optimiser)  # skips the step and lowers the scale if a gradient overflowed float16
        scaler.update()
    elif math.isfinite(length):
        state.optimiser.step()
    else:
        raise SharedError(f"the gradient became {length} after {state.seen} samples. {_remedy(state, run)}")
    _update_batch_norms(task.module, len(parts), process_group)
    return found


def _clipped(parameters: Sequence[nn.Parameter], clipped_separately: Sequence[nn.Module], most: float) -> Tensor:
    """Clip gradients to the norm `most`, separately for each module in `clipped_separately` and for all other parameters.

    Returns the norm of all gradients before clipping.
    """
    groups = [[p for p in module.parameters() if p.requires_grad] for module in clipped_separately]
    taken = {id(p) for group in groups for p in group}
    groups.append([p for p in parameters if id(p) not in taken])
    return torch.stack([nn.utils.clip_grad_norm_(group, most) for group in groups]).norm()


def _counts(task: TrainTask, parts: Sequence[Batch], process_group: ProcessGroup) -> dict[str, Tensor]:
    """Numbers of valid elements in the global batch."""
    each = [task.model.counts(part) for part in parts]
    names = sorted(each[0])
    total = process_group.sum(torch.stack([torch.stack([one[name] for one in each]).sum() for name in names]).double())
    return dict(zip(names, total, strict=True))


@torch.no_grad()
def _summed(parameters: Sequence[nn.Parameter], values: Float[Tensor, "n"], process_group: ProcessGroup) -> Float[Tensor, "n"]:
    """Sum gradients and other values over all processes in one all-reduce. A parameter without a gradient on all ranks keeps none."""
    if process_group.size > 1:
        none, some = values.new_zeros(1), values.new_ones(1)  # on the device: a copy from the host would synchronise
        has = torch.cat([none if p.grad is None else some for p in parameters])
        grads = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        sizes = [len(values), len(has), *map(len, grads)]
        values, has, *grads = process_group.sum(torch.cat([values, has, *grads])).split(sizes)
        for parameter, grad, known in zip(parameters, grads, _read(has), strict=True):
            parameter.grad = grad.view_as(parameter) if known else None
    return values


def _read(values: Float[Tensor, "n"]) -> list[float]:
    """Copy values to the host. This is a step's only GPU synchronisation: once with a single process, twice with several."""
    return values.tolist()


def _update_batch_norms(module: nn.Module, groups: int, process_group: ProcessGroup) -> None:
    for norm in module.modules():
        if isinstance(norm, BatchNorm) and norm.kept:
            norm.update_running_stats(groups, lambda kept: process_group.sum(kept) / process_group.size)


def _save(state: State, run: Run, logs: Mapping[str, float], process_group: ProcessGroup) -> Path:
    if not all(bool(value.isfinite().all()) for value in state.weights.values()):
        raise SharedError(f"weights contain NaN or Inf after {state.seen} samples, so they are not saved. {_remedy(state, run)}")
    with process_group.raise_on_all_ranks():
        if process_group.is_rank_zero:
            state.save(run, logs)
    return run.folder / "checkpoints" / checkpoint.name(state.seen)


def _validate(state: State, run: Run, process_group: ProcessGroup) -> dict[str, float]:
    """Validate the EMA weights in float32, as they are used for inference, then restore the raw weights exactly."""
    task = state.task
    assert task.validate is not None
    raw = {k: v.clone() for k, v in task.module.state_dict().items()}
    task.model.to(torch.float32)
    task.module.load_state_dict(dict(state.weights))
    task.model.eval()
    try:
        with torch.no_grad():
            numbers, text = task.validate()
    finally:
        task.model.to(state.precision.dtype)
        task.module.load_state_dict(raw)
        task.model.train()
    name, value = next(iter(numbers.items()))
    if not state.best or value > state.best["value"]:
        state.best = {"name": name, "value": value, "samples": state.seen}
    if process_group.is_rank_zero:
        run.log({"samples": state.seen, **{f"validation_{k}": v for k, v in numbers.items()}})
        run.write_text(f"validation-{state.seen:09d}.txt", text + "\n")
    return {f"validation_{k}": v for k, v in numbers.items()}


def _out_of_memory_in_validation(state: State, process_group: ProcessGroup) -> str:
    kept = "The training so far is saved" if process_group.size == 1 else "The checkpoints written so far are complete"
    return (
        f"the GPU has too little memory to validate after {state.seen} samples. {kept}: continue with `--resume on` on a GPU with more memory, "
        f"or after ending other programs on it. Or start again with --recipe.train_{_stage(state)}.validate_every 0 (no validation, so no best "
        "checkpoint is kept)."
    )
