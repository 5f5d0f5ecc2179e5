"""What a step consumes: plan, ramp, sample order, learning-rate scaling, schedule, random keys. No torch."""

from largebatch.batch.cooldown import CooledTrunk, cooled_from
from largebatch.batch.decays import Cooldown, InverseSqrt, Restarts
from largebatch.batch.duration import Duration
from largebatch.batch.order import SampleOrder
from largebatch.batch.orders import SequentialOrder, WeightedOrder
from largebatch.batch.plan import BatchPlan, MicroBatch
from largebatch.batch.ramp import BatchRamp
from largebatch.batch.scaling import SCALING_RULES, ScaledValue, scale_lr
from largebatch.batch.schedule import Schedule

__all__ = [
    "SCALING_RULES",
    "BatchPlan",
    "BatchRamp",
    "Cooldown",
    "CooledTrunk",
    "Duration",
    "InverseSqrt",
    "MicroBatch",
    "Restarts",
    "SampleOrder",
    "ScaledValue",
    "Schedule",
    "SequentialOrder",
    "WeightedOrder",
    "cooled_from",
    "scale_lr",
]
