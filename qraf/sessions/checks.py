"""What a prompt, a recall and a request for a response must be, before anything is done for it. No I/O."""

from __future__ import annotations

from qraf.errors import InvalidRequest
from qraf.filters import validate
from qraf.frames import Enhance, GenerateChoice
from qraf.network.topology import Topology
from qraf.settings import LimitSettings
from qraf.times import parse_time

__all__ = ["check_budget", "check_enhance", "check_k", "check_text"]


def check_enhance(request: Enhance, limits: LimitSettings, topology: Topology) -> None:
    """Raises InvalidRequest, with a pointer to the field, where a request for a response cannot be."""
    check_text(request.prompt, limits, "/prompt")
    check_k(request.evidence.k, limits, "/evidence/k")
    check_budget(request.evidence.token_budget, "/evidence/token_budget")
    if request.evidence.filter is not None:
        validate(request.evidence.filter)
    if request.evidence.as_of is not None:
        parse_time(request.evidence.as_of, "/evidence/as_of")
    if isinstance(request.generate, GenerateChoice):
        _check_generate(request.generate, limits, topology)
        if request.metrics is not None and request.metrics.every_ms < 100:
            raise InvalidRequest("must be at least 100", "/metrics/every_ms")
    if request.remember and request.session is None:
        raise InvalidRequest("`remember` needs a `session` to write to", "/remember")


def check_text(text: str, limits: LimitSettings, pointer: str) -> None:
    """Raises InvalidRequest where it is empty, longer than `max_prompt_bytes`, or no Unicode."""
    if not text.strip():
        raise InvalidRequest("must not be empty", pointer)
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > limits.max_prompt_bytes:
        raise InvalidRequest(f"may have {limits.max_prompt_bytes} bytes, but has {size}", pointer)
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidRequest("must be valid Unicode, but has a lone surrogate", pointer)


def check_k(k: int, limits: LimitSettings, pointer: str) -> None:
    """Raises InvalidRequest where it is no number of items that may be asked for."""
    if not 1 <= k <= limits.max_k:
        raise InvalidRequest(f"must be 1 to {limits.max_k}, but is {k}", pointer)


def check_budget(budget: int | None, pointer: str) -> None:
    """Raises InvalidRequest where it is no number of tokens."""
    if budget is not None and budget < 1:
        raise InvalidRequest(f"must be at least 1, but is {budget}", pointer)


def _check_generate(choice: GenerateChoice, limits: LimitSettings, topology: Topology) -> None:
    bounds: tuple[tuple[str, float, float, float], ...] = (
        ("max_tokens", choice.max_tokens, 1, limits.max_tokens),
        ("temperature", choice.temperature, 0.0, 2.0),
        ("top_p", choice.top_p, 0.0, 1.0),
    )
    for name, value, low, high in bounds:
        if not low <= value <= high:
            raise InvalidRequest(f"must be {low:g} to {high:g}, but is {value:g}", f"/generate/{name}")
    if len(choice.stop) > 8 or any(not stop for stop in choice.stop):
        raise InvalidRequest("must be at most 8 strings, none empty", "/generate/stop")
    if choice.model is not None:
        known = {name for node in topology.generators() for name in (node.name, node.model) if name}
        if choice.model not in known:
            raise InvalidRequest(
                f"no generator '{choice.model}'; there are: {', '.join(sorted(known)) or 'none'}", "/generate/model"
            )
