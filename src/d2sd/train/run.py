"""The run that makes a target's drafters: stages, measuring, export."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from d2sd.drafters.checkpoint import save_network
from d2sd.drafters.network import DraftNetwork, RotaryNetwork
from d2sd.provenance import provenance
from d2sd.train import log, record
from d2sd.train.attention import use_fast_attention
from d2sd.train.best import BestWeights
from d2sd.train.compiling import Compiler, choose_compiler
from d2sd.train.course import Course, Intervals, Place
from d2sd.train.evaluate import Acceptance
from d2sd.train.loop import Setup, StepReport, Trainer
from d2sd.train.material import Material
from d2sd.train.parallel import Alone, Processes
from d2sd.train.stage import Stage, find_stages
from d2sd.train.start import fold_scale


@dataclass(frozen=True)
class Moment:
    """Where a training stands after a step."""

    stage: str
    report: StepReport
    done: int
    """Steps of all stages asked for."""
    total: int
    acceptance: float | None
    """The latest of this stage."""


def ignore(_: object) -> None:
    """Hears nothing."""


@dataclass(frozen=True)
class Company:
    """Who a training shares its work with, and who listens."""

    processes: Processes = field(default_factory=Alone)
    hear: Callable[[Moment], None] = ignore
    """Hears every step."""
    tell: Callable[[str], None] = ignore
    """Hears remarks."""
    until: float = float("inf")
    """When to stop, on `time.perf_counter`: OutOfTimeError is raised, and a checkpoint is there."""


class DrafterTraining:
    """The drafters of a target.

    Everything lives under `folder`; a run that was killed goes on where its last checkpoint
    stands when it is started again with the same arguments. Raises ValueError when the folder
    holds another training.
    """

    trainer = Trainer

    def __init__(self, material: Material, folder: Path, company: Company | None = None) -> None:
        self.material, self.folder = material, folder
        self.record = record.describe(material.recipe, material.responses)
        self._company = company or Company()
        self._log = log.TrainingLog(folder)
        self._compiler: Compiler | None = None
        record.check_same(folder, self.record)
        self._company.processes.wait()
        if self._company.processes.is_first:
            record.write_record(folder, self.record)
            self._log.append({"started": provenance(material.device, material.recipe.seed)})

    def train(
        self, stages: str, first: DraftNetwork | None = None, start: DraftNetwork | None = None
    ) -> dict[str, DraftNetwork]:
        """Train first, second, both or one; gives the best weights of each, by its name.

        `first` is the drafter that a second one works with, where that isn't trained here. Training
        begins at `start`; without it a second drafter begins at the first one, others at the
        target's last layers. `Material.load` gives both.
        """
        asked = find_stages(stages, self.material.recipe)
        if not self.material.evaluator.sequences:
            self._company.tell(
                "no held-out response is greedy, so acceptance can't be measured: the last weights "
                "are kept instead of the best"
            )
        trained: dict[str, DraftNetwork] = {}
        for stage in asked:
            if stage.name == "second":
                first = trained.get("first") or first or self._first_in_folder()
                start = start or first
            network = self.material.fresh() if start is None else self.material.copy_of(start)
            self._train(stage, network, first, asked)
            trained[stage.name] = network
            start = None
        return trained

    def export(self, networks: dict[str, DraftNetwork], out: Path) -> None:
        """Write each network to a folder of its name in `out`, ready to decode with.

        The recipe and the log go beside them.
        """
        if not self._company.processes.is_first:
            return
        for name, network in networks.items():
            (stage,) = find_stages(name, self.material.recipe)
            temperatures = self.material.evaluator.temperatures(_working(network), stage.prefix)
            config = self.material.config()
            config["dflash_config"]["temperatures"] = [round(t, 3) for t in temperatures]
            shipped = copy.deepcopy(network)
            fold_scale(shipped, self.material.source.scale)
            save_network(_working(shipped), out / name, config)
        self._export_record(out)

    def _export_record(self, out: Path) -> None:
        record.write_record(out, self.record)
        shutil.copyfile(self._log.path, out / log.NAME)

    def _first_in_folder(self) -> DraftNetwork:
        """The first drafter that was trained in this folder before."""
        network = self.material.fresh()
        if not BestWeights(self.folder / "first").load(network):
            raise ValueError(
                f"a second drafter works with a first one, and {self.folder} has none; give one "
                "with --first FOLDER, or train both"
            )
        return network

    def _train(
        self, stage: Stage, network: RotaryNetwork, first: DraftNetwork | None, asked: list[Stage]
    ) -> None:
        """Train `network` to the end of its stage; it then holds the best weights on the way."""
        recipe, processes = self.material.recipe, self._company.processes
        course = Course(
            self._trainer(stage, network),
            partial(self._measured, stage, first),
            Intervals(recipe.evaluate_every, recipe.checkpoint_every),
            Place(stage.name, self.folder / stage.name, self._log, processes.is_first),
        )
        total = sum(each.schedule.steps for each in asked)
        ahead = sum(each.schedule.steps for each in asked[: asked.index(stage)])

        def hear(report: StepReport, acceptance: float | None) -> None:
            self._company.hear(Moment(stage.name, report, ahead + report.step, total, acceptance))

        course.run(hear, self._company.until)
        processes.wait()  # until the first one has written the best weights
        course.best.load(network)

    def _trainer(self, stage: Stage, network: RotaryNetwork) -> Trainer:
        recipe, processes = self.material.recipe, self._company.processes
        if self._compiler is None:  # chosen once, so that a remark on it is made once
            self._compiler = choose_compiler(recipe.compile, network, self._company.tell)
        setup = Setup(
            accumulate=recipe.accumulate,
            ema=recipe.ema,
            compiler=self._compiler,
            processes=processes,
        )
        processes.copy_first(weight.data for weight in network.parameters())
        sampler = self.material.sampler(stage)
        return self.trainer(network, self.material.ends, sampler, stage.schedule, setup)

    def _measured(
        self, stage: Stage, first: DraftNetwork | None, network: RotaryNetwork
    ) -> Acceptance | None:
        """On held-out answers; None without any. The one network serves both passes."""
        evaluator = self.material.evaluator
        if not evaluator.sequences:
            return None
        assert isinstance(network, DraftNetwork)
        working = _working(network)
        if stage.name == "second":
            assert first is not None
            return evaluator.acceptance(_working(first), working)
        return evaluator.acceptance(working, working if stage.name == "one" else None)


def _working(network: DraftNetwork) -> DraftNetwork:
    """A bfloat16 copy for inference, as it will be shipped."""
    working = copy.deepcopy(network).bfloat16().eval().requires_grad_(False)
    use_fast_attention(working)
    return working
