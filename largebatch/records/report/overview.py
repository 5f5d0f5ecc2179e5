"""The first screen: three numbers, one picture, the verdict; then the other results and the caveats."""

from __future__ import annotations

from collections.abc import Sequence

from largebatch.records.figures.figure import Figure
from largebatch.records.report import html_parts
from largebatch.records.report.batches import batch_figures
from largebatch.records.report.caveats import caveats
from largebatch.records.report.evidence import Evidence
from largebatch.records.report.groups import Group
from largebatch.records.report.headline import Headline, headlines
from largebatch.records.report.sections import Option, Section
from largebatch.records.report.studies import Study, picture
from largebatch.records.report.verdict import others, verdict

_NO_PICTURE = (
    "No picture yet: it shows who needs the fewest steps at each batch size. Run "
    "`largebatch study 'study.optimizers=[sgd,lars,lamb]' study.target.value=VALUE run.dir=runs/study`."
)


def overview(evidence: Evidence, groups: Sequence[Group], studies: Sequence[Study]) -> Section:
    """The section `overview`. On a page of results alone it has their sentences; of a single one it has nothing."""
    sentences = "".join(map(html_parts.paragraph, verdict(evidence, groups, studies)))
    after = f'<div class="verdict">{sentences}</div>' if sentences else ""
    told, doubts = others(evidence, studies), caveats(evidence, groups)
    if not groups and not studies and evidence.records:
        lines = html_parts.bullets(told if len(told) > 1 else []) + html_parts.grouped_list("Caveats", doubts)
        return Section("overview", "Results", lines)
    after += html_parts.grouped_list("Other results", told)
    after += html_parts.grouped_list("Caveats", doubts)
    numbers = "".join(map(_number, headlines(studies, groups, evidence)))
    before = f'<div class="numbers">{numbers}</div>'
    figures = _picture(groups, studies)
    if not figures:
        before += f'<div class="missing">{html_parts.paragraph(_NO_PICTURE)}</div>'
    return Section("overview", "Verdict", options=[Option("", figures, before, after=after)])


def _picture(groups: Sequence[Group], studies: Sequence[Study]) -> list[Figure]:
    """Of the largest study; without one, how runs of equal samples end."""
    if studies:
        return [picture(studies[0])]
    comparable = [group for group in groups if group.is_comparable and len(group.by_batch) > 1]
    return list(batch_figures([group for group in comparable if group.experiment == comparable[0].experiment])[:1])


def _number(one: Headline) -> str:
    if one.value:
        shown = f'<p class="value">{html_parts.prose(one.value)}</p>'
        shown += f'<p class="interval">{html_parts.prose(one.interval)}</p>'
    else:
        shown = '<p class="value none">not measured</p>'
    title, about = html_parts.escaped(one.title), html_parts.prose(one.about)
    return f'<div class="number"><h3>{title}</h3>{shown}<p class="about">{about}</p></div>'
