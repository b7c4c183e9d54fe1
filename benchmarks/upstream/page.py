"""The page of the docs that shows the results."""

from collections import Counter

from mmsb.analysis.report import markdown

DOING = {'built': 'built', 'step': 'trained for a step', 'prediction': 'predicted'}

PAGE = """# Upstream configs that run with SBResNet

Each folder of configs in MMDetection, MMSegmentation and MMPretrain is one method. For each folder that uses a
ResNet, this sweep takes one config, puts `mmsb.SBResNet` in the ResNet's place, builds the network, trains it for one
step and asks it for one prediction, once without and once with spatial bias. **{working} of {folders} folders work**;
the others are [named with their reasons](#exceptions).

```bash
python -m benchmarks.upstream                                      # the whole sweep; writes upstream.json and this page
python -m benchmarks.upstream --folders mmdet/dino mmseg/fcn --json some.json --page some.md
```

| | |
| - | - |
{facts}

| library | folders | with a ResNet | work without bias | work with spatial bias | gradients reach all of the bias |
| - | - | - | - | - | - |
{summary}

## What is run

* **Config:** the first one in the folder, by name, that has a ResNet; one with 50 layers if the names tell. Every
  ResNet in it is replaced, including those of teachers, of detectors inside trackers and of re-identification.
* **Changes:** the type. Also `deep_stem=True` for `ResNetV1c`; `deep_stem=True, avg_down=True` for `ResNetV1d`;
  `groups=32, base_width=4` for `ResNeXt`, unless the config sets them; the plugin `mmsb.SE` for `SEResNet`.
* **Weights:** random. Nothing is downloaded, connections are refused, and nothing is frozen, since freezing is for
  trained weights. The readers of the bias maps and the last norms, which start at zero, get random values so that
  gradients can pass.
* **Size:** two images of about 128 px, noise with three ellipses; at most 50 proposals, samples and queries an image.
  Depth and width are the config's own.
* **Step:** the config's optimizer, parameter groups and gradient clipping, at a warm-up learning rate, without AMP.
  All losses must be finite. Upstream does not train DeepSORT and StrongSORT as a whole, so their parts with a ResNet
  are trained. Synchronised batch norms, which need a GPU, become plain ones; the process is a gloo group of one.
* **Gradients:** every parameter of every spatial bias in a trained network gets a finite gradient that is not all
  zero.
* **Prediction:** one image, or a video of two frames, with score thresholds of at most 0.001. Self-supervised
  networks have no prediction; their features are extracted.

## Rows

Seconds are those of the network with spatial bias, from the fork of its process to its end.

{tables}

## Exceptions

{exceptions}
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
        'machine': f'{about["cpu"]}, {about["cores"]} cores, one for each network; no GPU',
        'packages': ', '.join(f'{name} {version}' for name, version in about['versions'].items()),
        "mmcv's operations": about['operations'],
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
