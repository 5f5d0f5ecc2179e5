"""What a step consumes: plan, ramp, sample order, scaling, schedule, random keys. No torch."""

from largebatch.batch.cooldown import CooledTrunk, cooled_from
from largebatch.batch.decay_rules import scale_weight_decay
from largebatch.batch.decays import Cooldown, InverseSqrt, Restarts
from largebatch.batch.duration import Duration
from largebatch.batch.joint_scaling import (
    ADAMW_FORM,
    JOINT_RULES,
    SGD_FORM,
    JointRule,
    OptimizerForm,
    scale_hyperparameters,
)
from largebatch.batch.memory_rules import ema_decay, scale_memory
from largebatch.batch.order import SampleOrder
from largebatch.batch.orders import SequentialOrder, WeightedOrder
from largebatch.batch.plan import BatchPlan, MicroBatch
from largebatch.batch.ramp import BatchRamp
from largebatch.batch.scaling import SCALING_RULES, ScaledValue, scale_lr
from largebatch.batch.schedule import Schedule

__all__ = [
    "ADAMW_FORM",
    "JOINT_RULES",
    "SCALING_RULES",
    "SGD_FORM",
    "BatchPlan",
    "BatchRamp",
    "Cooldown",
    "CooledTrunk",
    "Duration",
    "InverseSqrt",
    "JointRule",
    "MicroBatch",
    "OptimizerForm",
    "Restarts",
    "SampleOrder",
    "ScaledValue",
    "Schedule",
    "SequentialOrder",
    "WeightedOrder",
    "cooled_from",
    "ema_decay",
    "scale_hyperparameters",
    "scale_lr",
    "scale_memory",
    "scale_weight_decay",
]
