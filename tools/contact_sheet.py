#!/usr/bin/env python
"""Look at data sets: ``python tools/contact_sheet.py digits colour/digits -o sheet.png``.

One row per data set, one image per class, as they are before augmentation and normalisation. A
folder is given behind the name: ``colour/idx@/data/mnist``.
"""

import argparse
import sys

import numpy as np

from timm_topo.analysis.plot import contact_sheet, save_figure
from timm_topo.data import class_names, load_dataset


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        'datasets', nargs='+', metavar='NAME[@FOLDER]', help='as for tools/train.py'
    )
    parser.add_argument('--split', default='train')
    parser.add_argument('--columns', type=int, default=10, metavar='N', help='images per row')
    parser.add_argument('-o', '--output', required=True, metavar='FILE')
    args = parser.parse_args()
    if args.columns < 1:
        parser.error(f'--columns must be at least 1, got {args.columns}')
    return args


def examples(dataset, count: int) -> list[np.ndarray]:
    """The first image of each of the first classes; then, if classes are few, the next images."""
    first, more = {}, []
    for index in range(min(len(dataset), 100 * count)):
        image, label = dataset[index]
        if label < count and label not in first:
            first[label] = np.asarray(image.convert('RGB'))
        elif len(more) < count:
            more.append(np.asarray(image.convert('RGB')))
        if len(first) == count:
            break
    return ([first[label] for label in sorted(first)] + more)[:count]


def main(args: argparse.Namespace) -> None:
    rows, names = {}, []
    for given in args.datasets:
        name, _, folder = given.partition('@')
        dataset = load_dataset(name, folder or None, args.split)
        rows[f'{name}\n{folder}' if folder else name] = examples(dataset, args.columns)
        names.append(class_names(dataset))
    shared = names[0] if all(one == names[0] for one in names) else None
    fig = contact_sheet(rows, (shared or [])[: args.columns])
    print(f'written: {save_figure(fig, args.output)}')


if __name__ == '__main__':
    try:
        main(parse_args())
    except (ImportError, OSError, TypeError, ValueError) as error:
        sys.exit(f'error: {error}')
