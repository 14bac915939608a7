"""Any sampler put one question: made to count, limited, retried, checked, remembered."""

from solvers.ask.answer import Answer, Fault
from solvers.ask.ask import AnotherSampler, Ask, as_problem, solve
from solvers.ask.counting import CountsByModel, ProblemSampler, configured, counting
from solvers.ask.policy import Fallback, FaultPolicy, KeepMask, Stop
from solvers.ask.store import AnswerStore

__all__ = [
    "AnotherSampler",
    "Answer",
    "AnswerStore",
    "Ask",
    "CountsByModel",
    "Fallback",
    "Fault",
    "FaultPolicy",
    "KeepMask",
    "ProblemSampler",
    "Stop",
    "as_problem",
    "configured",
    "counting",
    "solve",
]
