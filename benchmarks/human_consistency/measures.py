"""How consistently a classifier and humans err on the same images: the measures of Geirhos et al., 2021.

"Partial success in closing the gap between human and machine vision", NeurIPS 2021, arXiv:2106.07411; table 11 of the
paper on spatial bias. For a decision maker m and a human h over the same trials, with accuracies p_m and p_h:

    accuracy difference   (p_m - p_h)^2
    observed consistency  c, the share of trials where both are right or both are wrong
    error consistency     (c - e) / (1 - e), e = p_m p_h + (1 - p_m) (1 - p_h); 1 if c = 1

They are computed for each human and condition, then averaged over conditions, humans, and data sets.
"""

import csv
import itertools
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

COLUMNS = ('subj', 'session', 'trial', 'rt', 'object_response', 'category', 'condition', 'imagename')
_READ = ('subj', 'object_response', 'category', 'condition', 'imagename')
LEFT_OUT = {  # conditions of each data set: the undistorted one, and those where humans average below 0.2 accuracy
    'colour': ('cr',),
    'contrast': ('c100', 'c03', 'c01'),
    'high-pass': ('inf', '0.55', '0.45', '0.4'),
    'low-pass': ('0', '15', '40'),
    'phase-scrambling': ('0', '150', '180'),
    'power-equalisation': ('0',),
    'false-colour': ('true',),
    'rotation': ('0',),
    'eidolonI': ('1-10-10', '64-10-10', '128-10-10'),
    'eidolonII': ('1-3-10', '32-3-10', '64-3-10', '128-3-10'),
    'eidolonIII': ('1-0-10', '16-0-10', '32-0-10', '64-0-10', '128-0-10'),
    'uniform-noise': ('0', '0.6', '0.9'),
    'sketch': (),  # the last five have one block each, where all is compared
    'stylized': (),
    'edge': (),
    'silhouette': (),
    'cue-conflict': (),
}
_ONE_BLOCK = [name for name, conditions in LEFT_OUT.items() if not conditions]

Responses = dict[str, dict[tuple[str, str], bool]]  # for each subject: (condition, trial) -> whether it was right


@dataclass(frozen=True)
class Consistency:
    """The three measures, or means of them."""

    accuracy_difference: float
    observed_consistency: float
    error_consistency: float


def compare(model: Sequence[bool], human: Sequence[bool]) -> Consistency:
    """Compare two decision makers over the same trials.

    Args:
        model: whether the one was right, trial by trial.
        human: whether the other was.

    Raises:
        ValueError: there is no trial, or the numbers of trials differ.
    """
    model, human = np.asarray(model, bool), np.asarray(human, bool)
    if model.shape != human.shape or not model.size:
        raise ValueError(f'there must be equally many trials, and at least one, got {model.size} and {human.size}')
    p_model, p_human = model.mean(), human.mean()
    observed = (model == human).mean()
    expected = p_model * p_human + (1 - p_model) * (1 - p_human)
    error = 1.0 if observed == 1 else (observed - expected) / (1 - expected)
    return Consistency(float((p_model - p_human) ** 2), float(observed), float(error))


def mean(consistencies: Iterable[Consistency]) -> Consistency:
    """Average each of the measures."""
    return Consistency(*np.mean([astuple(one) for one in consistencies], axis=0).tolist())


def trial_of(image_name: str) -> str:
    """Identify the image behind a trial's file name, which begins with the trial's number and its condition."""
    parts = image_name.removesuffix('.png').split('_')
    return '_'.join(parts[-2:]) if len(parts) > 1 and parts[-2].startswith('n0') else parts[-1]


def condition_of(text: str) -> str:
    """Write numbers in one way: '0.90' is '0.9'."""
    try:
        return f'{float(text):g}'
    except ValueError:
        return text


def read_responses(files: Iterable[str | os.PathLike]) -> Responses:
    """Read the responses to one data set.

    Args:
        files: csv files in the layout of the publication, `COLUMNS`. The header's case does not matter, and neither do
            the order of columns nor further ones.

    Raises:
        ValueError: a file has another layout, has no answers, or answers a trial twice.
    """
    found: Responses = {}
    for path in map(os.fspath, files):
        try:
            with open(path, newline='', encoding='utf-8-sig') as file:  # Excel writes a mark first
                rows = list(csv.reader(file))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f'{path!r} is not a csv file of responses: {error}') from error
        header = [name.strip().lower() for name in rows[0]] if rows else []
        missing = [name for name in _READ if name not in header]
        if missing:
            raise ValueError(f'{path!r} has no column {missing[0]!r}; needed: {", ".join(_READ)}')
        places = [header.index(name) for name in _READ]
        if not any(rows[1:]):
            raise ValueError(f'{path!r} has no answers')
        for number, row in enumerate(rows[1:], 2):
            if not row:  # an empty line
                continue
            if len(row) != len(header):
                raise ValueError(f'{path!r}, line {number}: has {len(row)} values, and the header {len(header)}')
            subject, response, category, condition, image = (row[place].strip() for place in places)
            key = condition_of(condition), trial_of(image)
            answers = found.setdefault(subject, {})
            if key in answers:
                raise ValueError(f'{path!r}, line {number}: {subject} answers {image!r} a second time')
            answers[key] = response == category
    return found


def find_humans(folder: str | os.PathLike) -> dict[str, list[Path]]:
    """List the files of humans' answers by data set, FOLDER/DATASET/*subject-*.csv.

    The publication keeps the answers of networks in the same folders.

    Raises:
        FileNotFoundError: there is none.
    """
    return _find(folder, '*subject-*.csv')


def find_responses(folder: str | os.PathLike, humans: Mapping[str, Sequence[Path]]) -> dict[str, list[Path]]:
    """List the files of answers, FOLDER/DATASET/*.csv, by data set, without those of the humans.

    Raises:
        FileNotFoundError: there is none.
    """
    known = {path.resolve() for paths in humans.values() for path in paths}
    return _find(folder, '*.csv', known)


def _find(folder: str | os.PathLike, pattern: str, known: Collection[Path] = ()) -> dict[str, list[Path]]:
    found = {
        dataset: [path for path in sorted(Path(folder, dataset).glob(pattern)) if path.resolve() not in known]
        for dataset in LEFT_OUT
    }
    if not any(found.values()):
        names = ', '.join(LEFT_OUT)
        raise FileNotFoundError(f'there is no DATASET/{pattern} in {os.fspath(folder)!r}; data sets: {names}')
    return {dataset: paths for dataset, paths in found.items() if paths}


def read_all(files: Mapping[str, Sequence[Path]]) -> dict[str, Responses]:
    """Read the answers to all data sets; see `read_responses`."""
    return {dataset: read_responses(paths) for dataset, paths in files.items()}


def by_condition(dataset: str, answers: Mapping[tuple[str, str], bool]) -> dict[str, dict[str, bool]]:
    """Group a subject's answers by the conditions that count: {condition: {trial: whether it was right}}."""
    grouped: dict[str, dict[str, bool]] = {}
    for (condition, trial), right in answers.items():
        if dataset in _ONE_BLOCK:
            grouped.setdefault('', {})[trial] = right
        elif condition not in LEFT_OUT[dataset]:
            grouped.setdefault(condition, {})[trial] = right
    return grouped


def compare_subjects(dataset: str, model: Mapping, human: Mapping, *, partly: bool = False) -> Consistency:
    """Compare two subjects in a data set: the mean over the conditions, over the trials that both have answered.

    Args:
        dataset: name of the data set.
        model, human: of each (condition, trial), whether it was right.
        partly: whether to leave out the conditions of which they have no trial in common.

    Raises:
        ValueError: they have no trial of a condition in common, or with `partly` of any.
    """
    ours, theirs = by_condition(dataset, model), by_condition(dataset, human)
    found = []
    for condition, answers in theirs.items():
        trials = [trial for trial in answers if trial in ours.get(condition, {})]
        if not trials and partly:
            continue
        if not trials:
            where = f'condition {condition!r} of {dataset}' if condition else dataset
            raise ValueError(f'{where}: no image has an answer of both')
        found.append(compare([ours[condition][trial] for trial in trials], [answers[trial] for trial in trials]))
    if not found:
        raise ValueError(f'{dataset}: no image of a condition that counts has an answer of both')
    return mean(found)


def humans_with_humans(humans: Mapping[str, Responses]) -> dict[str, Consistency]:
    """Compare all pairs of humans, over what both have answered: the mean of each data set that has two or more."""
    found = {}
    for dataset, subjects in humans.items():
        pairs = list(itertools.combinations(subjects.values(), 2))
        if pairs:
            found[dataset] = mean(compare_subjects(dataset, *pair, partly=True) for pair in pairs)
    return found


def with_humans(humans: Mapping[str, Responses], model: Mapping[str, Mapping]) -> dict[str, Consistency]:
    """Compare one decision maker with all humans: the mean of each data set that both have.

    Args:
        humans: from `read_all`.
        model: for each data set, of each (condition, trial), whether it was right.
    """
    return {
        dataset: mean(compare_subjects(dataset, model[dataset], human) for human in subjects.values())
        for dataset, subjects in humans.items()
        if dataset in model
    }


def table(humans: Mapping[str, Responses], responses: Mapping[str, Responses]) -> dict[str, dict[str, Consistency]]:
    """Compare humans with each other, and with each subject of other responses: {subject: {data set: measures}}.

    Raises:
        ValueError: a subject shares no data set or trial with the humans, or no data set has two humans to compare.
    """
    among_humans = humans_with_humans(humans)
    if not (among_humans or responses):
        raise ValueError('no data set has the answers of two humans to compare')
    found = {'humans': among_humans} if among_humans else {}
    for subject in dict.fromkeys(name for subjects in responses.values() for name in subjects):
        own = {dataset: subjects[subject] for dataset, subjects in responses.items() if subject in subjects}
        found[subject] = with_humans(humans, own)
        if not found[subject]:
            raise ValueError(f'{subject} and the humans have no data set in common')
    return found
