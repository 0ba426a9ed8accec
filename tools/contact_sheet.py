#!/usr/bin/env python
"""Look at data sets: ``python tools/contact_sheet.py digits colour/digits -o sheet.png``.

One row per data set, one column per class, images as they are before augmentation and
normalisation. A folder is given behind the name: ``colour/idx@/data/mnist``.
"""

import argparse
import sys

import numpy as np

from timm_topo.data import class_names, load_dataset


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'datasets', nargs='+', metavar='NAME[@FOLDER]', help='as for tools/train.py'
    )
    parser.add_argument('--split', default='train')
    parser.add_argument('--columns', type=int, default=10, metavar='N', help='classes at most')
    parser.add_argument('-o', '--output', required=True, metavar='FILE')
    args = parser.parse_args()
    if args.columns < 1:
        parser.error(f'--columns must be at least 1, got {args.columns}')
    return args


def examples(dataset, count: int) -> list[np.ndarray | None]:
    """An image of each of the first classes; None where there is none among many."""
    found = {}
    order = np.random.default_rng(0).permutation(len(dataset))
    for index in order[:5000].tolist():
        image, label = dataset[index]
        if label < count and label not in found:
            found[label] = np.asarray(image.convert('RGB'))
        if len(found) == count:
            break
    return [found.get(label) for label in range(count)]


def main(args: argparse.Namespace) -> None:
    from timm_topo.plot import contact_sheet, save_figure

    rows, names = {}, []
    for given in args.datasets:
        name, _, folder = given.partition('@')
        dataset = load_dataset(name, folder or None, args.split)
        names.append(class_names(dataset))
        columns = min(args.columns, len(names[-1]) if names[-1] else args.columns)
        rows[f'{name}\n{folder}' if folder else name] = examples(dataset, columns)
    shared = names[0] if all(one == names[0] for one in names) else None
    fig = contact_sheet(rows, (shared or [])[: args.columns])
    print(f'written: {save_figure(fig, args.output)}')


if __name__ == '__main__':
    try:
        main(parse_args())
    except (ImportError, OSError, TypeError, ValueError) as error:
        sys.exit(f'error: {error}')
