# Every public name and its module: `__init__.py` imports one when it is first used.
from .data.augment import (
    Augmentation as Augmentation,
)
from .data.augment import (
    Mixup as Mixup,
)
from .data.augment import (
    OwnText as OwnText,
)
from .data.calibration import Calibration as Calibration
from .data.images import (
    ShiftImages as ShiftImages,
)
from .data.images import (
    SuitedImages as SuitedImages,
)
from .data.images import (
    WarpImages as WarpImages,
)
from .data.inputs import Call as Call
from .distributed.ranks import DataParallel as DataParallel
from .distributed.ranks import Ranks as Ranks
from .models.datasets import load_data as load_data
from .models.zoo import load_model as load_model
from .moving.compensate import Compensate as Compensate
from .moving.compensate import Compensation as Compensation
from .moving.distill import Distillation as Distillation
from .network.groups import (
    Budget as Budget,
)
from .network.groups import (
    Global as Global,
)
from .network.groups import (
    NofM as NofM,
)
from .network.groups import (
    PerLayer as PerLayer,
)
from .network.groups import (
    PerRow as PerRow,
)
from .network.hold import Held as Held
from .network.hold import hold as hold
from .network.patterns import Pattern as Pattern
from .objective import (
    EmpiricalFisher as EmpiricalFisher,
)
from .objective import (
    ExactHessian as ExactHessian,
)
from .objective import (
    SampledFisher as SampledFisher,
)
from .objective import (
    SketchedFisher as SketchedFisher,
)
from .objective.curvature import Curvature as Curvature
from .objective.losses import (
    DenseOutputs as DenseOutputs,
)
from .objective.losses import (
    Labels as Labels,
)
from .objective.losses import (
    Loss as Loss,
)
from .objective.losses import (
    PerSample as PerSample,
)
from .objective.samples import Objective as Objective
from .prune import FaultPolicy as FaultPolicy
from .prune import Pruned as Pruned
from .prune import prune as prune
from .results import (
    Estimate as Estimate,
)
from .results import (
    Observer as Observer,
)
from .results import (
    Report as Report,
)
from .results import (
    Score as Score,
)
from .results import (
    Step as Step,
)
from .steps.reconstruct import (
    OneShot as OneShot,
)
from .steps.reconstruct import (
    Reconstruct as Reconstruct,
)
from .steps.reconstruct import (
    RowMethod as RowMethod,
)
from .steps.reconstruct import (
    SampledRows as SampledRows,
)
from .steps.select import (
    Boundary as Boundary,
)
from .steps.select import (
    LayerByLayer as LayerByLayer,
)
from .steps.select import (
    RandomPairs as RandomPairs,
)
from .steps.select import (
    Select as Select,
)
from .steps.solve import BlockObserver as BlockObserver
from .steps.start import (
    DiagonalFisher as DiagonalFisher,
)
from .steps.start import (
    Gradient as Gradient,
)
from .steps.start import (
    Magnitude as Magnitude,
)
from .steps.start import (
    Random as Random,
)
from .steps.start import (
    Start as Start,
)
from .steps.start import (
    Wanda as Wanda,
)
from .walk.journal import Limits as Limits
from .walk.layerwise import Layerwise as Layerwise
from .walk.networkwise import Networkwise as Networkwise
from .walk.schedule import Method as Method
from .walk.sensitivity import Sensitivity as Sensitivity
