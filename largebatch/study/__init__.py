from largebatch.study.analysis import Analysis, analyse
from largebatch.study.csv_table import TableError, read_points
from largebatch.study.points import Scale, StudyPoint
from largebatch.study.record import study_record

__all__ = ["Analysis", "Scale", "StudyPoint", "TableError", "analyse", "read_points", "study_record"]
