"""The page of the docs that shows the results."""

from collections import Counter

from mmsb.analysis.report import markdown

DOING = {'built': 'built', 'step': 'trained for a step', 'prediction': 'predicted'}

PAGE = """# Upstream's configs

Every folder of configs of MMDetection, MMSegmentation and MMPretrain is a method. From each folder that uses a ResNet this
takes one config, puts `mmsb.SBResNet` in the place of the ResNet, and tries whether the network can be built, trained for
one step, and asked for one prediction: {folders} folders, {working} of which work, both without and with spatial bias.

```bash
python -m benchmarks.upstream             # everything; results go to benchmarks/results/upstream.json and this page
python -m benchmarks.upstream --folders mmdet/dino mmseg/fcn
```

| | |
| - | - |
{facts}

| library | folders | with a ResNet | work without bias | work with spatial bias | gradients reach all of the bias |
| - | - | - | - | - | - |
{summary}

## What is run

* **Config:** the first of a folder by name that has a ResNet; one with 50 layers if the names tell. Every ResNet in it is
  replaced, those of teachers, momentum encoders, detectors in trackers and re-identification included.
* **Changes:** the type, and besides `deep_stem=True` for `ResNetV1c`, `avg_down=True` too for `ResNetV1d`, `groups=32,
  base_width=4` for `ResNeXt` unless the config says others, the plugin `mmsb.SE` for `SEResNet`. In MMPretrain's configs
  also `out_indices=(3,)`, its default, where they name none, and its `width_per_group` is `base_width`.
* **No weights:** nothing is downloaded (connections are refused); configs that name weights get none, and nothing is
  frozen, since random weights are nothing to freeze. Readers of the bias maps and last norms, which start at zero, are
  set to random values, so that gradients reach all parameters.
* **Small:** images of about 128 px of noise with three ellipses, two in a batch; at most 100 proposals, samples and queries
  an image. Depths and widths are the configs' own.
* **Step:** by the config's optimizer, with parameter groups and clipping, at the learning rate of a warm-up, without AMP.
  All losses have to be finite. DeepSORT and StrongSORT are not trained as one upstream: their parts with a ResNet are.
  The process is a group of one (gloo), and synchronised batch norms become plain ones: they need a GPU.
* **Gradients:** each parameter of each spatial bias in a trained network gets a finite gradient that is not all zero.
* **Prediction:** one image, or a video of two frames; there has to be one result an image. Self-supervised networks have no
  prediction: their features are extracted.

## Exceptions

{exceptions}

## Rows

{tables}
"""


def works(result: dict) -> bool:
    """Whether one of the two networks of a row did all that it has to."""
    return all(result.get(key) for key in DOING) and result.get('gradients') is not False


def exceptions(rows: list[dict]) -> list[dict]:
    """List the rows in which something does not work."""
    return [row for row in rows if not (works(row['plain']) and works(row['spatial_bias']))]


def page(results: dict) -> str:
    """Write the page from what the json has."""
    rows, about = results['rows'], results['about']
    failed = exceptions(rows)
    facts = {
        'date': about['date'][:10],
        'machine': f'{about["cpu"]}, {about["cores"]} cores, no GPU; a thread for each row',
        'packages': ', '.join(f'{name} {version}' for name, version in about['versions'].items()),
        "mmcv's operations": about['operations'],
        'time': f'{about["minutes"]} minutes, {about["jobs"]} rows at a time',
    }
    return PAGE.format(
        folders=len(rows),
        working=len(rows) - len(failed),
        facts='\n'.join(f'| {name} | {value} |' for name, value in facts.items()),
        summary='\n'.join(_summary(library, count, rows) for library, count in results['folders'].items()),
        exceptions='\n'.join(map(_exception, failed)) or 'None.',
        tables='\n\n'.join(_table(library, rows) for library in results['folders']),
    )


def _summary(library: str, folders: int, rows: list[dict]) -> str:
    rows = [row for row in rows if row['library'] == library]
    counts = [
        sum(works(row['plain']) for row in rows),
        sum(works(row['spatial_bias']) for row in rows),
        sum(row['spatial_bias'].get('gradients') is True for row in rows),
    ]
    return f'| {library} | {folders} | {len(rows)} | {" | ".join(map(str, counts))} |'


def _exception(row: dict) -> str:
    results = {'without bias': row['plain'], 'with spatial bias': row['spatial_bias']}
    reasons = {name: result['reason'] for name, result in results.items() if not works(result)}
    said = '; '.join(f'{name}: {reason}' for name, reason in reasons.items())
    if len(set(reasons.values())) == 1 and len(reasons) == 2:
        said = row['plain']['reason']
    return f'* `{row["library"]}/{row["config"]}`: {said}'


def _table(library: str, rows: list[dict]) -> str:
    cells = [
        [
            f'`{row["config"]}`',
            ', '.join(
                f'{kind} ({count})' if count > 1 else kind
                for kind, count in Counter(row['spatial_bias'].get('replaced', ())).items()
            ),
            _state(row['plain']),
            _state(row['spatial_bias']),
            {True: 'yes', False: 'no', None: '-'}[row['spatial_bias'].get('gradients')],
            f'{row["spatial_bias"]["seconds"]:.0f}',
        ]
        for row in rows
        if row['library'] == library
    ]
    return f'### {library}\n\n' + markdown(['config', 'replaces', 'plain', 'with bias', 'gradients', 's'], cells)


def _state(result: dict) -> str:
    if works(result):
        return 'works'
    done = [word for key, word in DOING.items() if result.get(key)]
    return f'only {done[-1]}' if done else 'not built'
