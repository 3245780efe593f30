"""What the predictors of a run agree on, so that its rows are comparable: number format and compiled forward pass.

The first predictor to decide writes it into the run directory, and all others read it there.
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from retailray import storage

if TYPE_CHECKING:
    from retailray.execution import Reporter
    from retailray.models.compiling import Decision
    from retailray.models.predicting import PredictorSettings
    from retailray.models.predictor import Predictor

PRECISION = "precision.txt"  # float32, bfloat16 or int8
FORWARD_PASS = "forward_pass.txt"  # one of:
COMPILED, NOT_COMPILED, PARTLY = "compiled", "not compiled", "not compiled in every process"


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Files in the folder of a run.

    Attributes:
        folder: an address; '': every predictor decides for itself.
        known: what stood in them before the run started its predictors, by name of the file; it is not read again.
    """

    folder: str = ""
    known: dict[str, str] = dataclasses.field(default_factory=dict)

    def read(self, name: str) -> str | None:
        if name in self.known or not self.folder:
            return self.known.get(name)
        address = storage.join(self.folder, name)
        if not storage.exists(address):
            return None
        found = storage.read_bytes(address).decode()
        return found.split()[0] if name == PRECISION else found  # for some days it said "bfloat16 compiled"

    def propose(self, name: str, value: str) -> str:
        """``value``, or what another predictor has written first."""
        if not self.folder or storage.put_if_absent(storage.join(self.folder, name), value.encode()):
            return value
        return storage.read_bytes(storage.join(self.folder, name)).decode()

    def correct(self, name: str, value: str) -> None:
        """Say what is done in place of what was agreed."""
        if self.folder:
            storage.write_bytes(storage.join(self.folder, name), value.encode())


def known_agreement(folder: str) -> Agreement:
    """With what stands in a run's folder now: a question of the driver, which every predictor would ask otherwise."""
    found = {name: Agreement(folder).read(name) for name in (PRECISION, FORWARD_PASS)}
    return Agreement(folder, {name: value for name, value in found.items() if value})


def agreed_predictor(
    settings: "PredictorSettings", make: Callable[[str], "Predictor"], reporter: "Reporter"
) -> "Predictor":
    """A predictor in the number format of its run, compiled as the others are.

    ``make``: from a number format, or auto. The predictor that decides sends a ``forward_pass`` event.
    """
    agreement = settings.agreement
    known = agreement.read(PRECISION)
    predictor = make(known or settings.precision)
    if not known:
        known = agreement.propose(PRECISION, predictor.precision)
        if known != predictor.precision:
            predictor = make(known)
    _agree_on_pass(predictor, settings, reporter)
    return predictor


def _agree_on_pass(predictor: "Predictor", settings: "PredictorSettings", reporter: "Reporter") -> None:
    agreement = settings.agreement
    known = agreement.read(FORWARD_PASS)
    decision = _decide(predictor, settings, known)
    if not agreement.folder:
        return
    if not known:
        done = COMPILED if decision.compiled else NOT_COMPILED
        known = agreement.propose(FORWARD_PASS, done)
        if known == done:
            reporter.event("forward_pass", {"as": f"{predictor.precision}, {done}", "why": decision.why})
            return
        decision = _decide(predictor, settings, known)  # another machine's predictor was first
    if known == (COMPILED if decision.compiled else NOT_COMPILED):
        return
    if not decision.compiled and settings.compile != "off" and not settings.use_gpu:
        note = f"predictions go on without a compiled forward pass: {decision.why}"
        reporter.event("warning", {"note": note})
    alone = settings.use_gpu and settings.compile == "auto"  # what was agreed is of a night on CPUs
    agreement.correct(FORWARD_PASS, NOT_COMPILED if alone else PARTLY)


def _decide(predictor: "Predictor", settings: "PredictorSettings", known: str | None) -> "Decision":
    from retailray.models.compiling import compile_if_it_pays

    mode = settings.compile
    if mode == "auto" and known:
        mode = "off" if known == NOT_COMPILED or settings.use_gpu else "on"
    return compile_if_it_pays(predictor, mode, num_images=settings.num_images, batch_size=settings.batch_size)
