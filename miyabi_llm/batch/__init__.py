"""Many requests from a file to a file: checked first, resumed after anything, no row lost and none twice."""

from miyabi_llm.batch.run import Work, finish, opened, run
from miyabi_llm.batch.values import Job, Judge, Kind, Limits, Prices, Problem, Row, Shape, Stop, Summary

__all__ = [
    "Job",
    "Judge",
    "Kind",
    "Limits",
    "Prices",
    "Problem",
    "Row",
    "Shape",
    "Stop",
    "Summary",
    "Work",
    "finish",
    "opened",
    "run",
]
