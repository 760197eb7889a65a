"""The commands and their properties."""

from dataclasses import dataclass
from typing import Literal

FROM_CHECKPOINT = "from_checkpoint"  # the choice of a config group that is read from the checkpoint
TASKS = "pretext"  # config group of the pretext tasks
PRETRAIN, FINETUNE, EVALUATE, PREDICT, COMPARE = "pretrain", "finetune", "evaluate", "predict", "compare"


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        about: description in `sslrun --help`.
        images: whether it takes paths of images as arguments.
        data: `given` if a data set has to be given, `checkpoint` if it may be a checkpoint's, None if it reads none.
            A folder of images may be an argument.
        trains: the network that its runs contain.
        is_data: whether it is run as `sslrun data COMMAND`; such runs are not listed.
        one_shot: whether it is repeated from the beginning after an interruption, not resumed.
    """

    about: str
    images: bool = False
    data: Literal["given", "checkpoint"] | None = None
    trains: Literal["encoder", "classifier"] | None = None
    is_data: bool = False
    one_shot: bool = False


COMMANDS = {
    PRETRAIN: Command("Pretrain a network on images, without labels.", data="given", trains="encoder"),
    FINETUNE: Command("Train a classifier on few labels.", data="checkpoint", trains="classifier"),
    EVALUATE: Command("Evaluate a classifier on the test split.", data="checkpoint"),
    PREDICT: Command("Classify images.", images=True, one_shot=True),
    "embed": Command("Extract features of images, and draw a map of them.", images=True, one_shot=True),
    "search": Command("Find the images most similar to a query image.", images=True, one_shot=True),
    "suggest": Command("Suggest which images to label first.", images=True, one_shot=True),
    "export": Command("Export a classifier or its backbone for use without sslrun.", one_shot=True),
    COMPARE: Command("Compare pretraining with training from scratch over label budgets.", data="given"),
    "fetch": Command("Download a published data set.", is_data=True),
    "check": Command("Check a data set before training on it.", data="given", is_data=True),
    "doubt": Command("List the labels that predictions contradict most.", is_data=True, one_shot=True),
    "preview": Command("Draw the augmented views of a pretext task.", data="given", is_data=True),
}
LISTED = tuple(name for name, c in COMMANDS.items() if not c.is_data)
FOR_ENCODER = tuple(name for name, c in COMMANDS.items() if c.trains == "encoder")
WITH_ENCODER = tuple(name for name, c in COMMANDS.items() if c.trains)
WITH_CLASSIFIER = tuple(name for name, c in COMMANDS.items() if c.trains == "classifier")


def typed(command: str) -> str:
    """Return a command as it is typed: `sslrun finetune`, `sslrun data check`."""
    return f"sslrun data {command}" if COMMANDS[command].is_data else f"sslrun {command}"
