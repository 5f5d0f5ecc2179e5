from largebatch.experiments.study.analysis import Analysis, analyse
from largebatch.experiments.study.csv_table import TableError, read_points
from largebatch.experiments.study.points import StudyPoint
from largebatch.experiments.study.record import study_record

__all__ = ["Analysis", "StudyPoint", "TableError", "analyse", "read_points", "study_record"]
