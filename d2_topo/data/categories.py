"""Whether a data set has the categories that a detector is for."""

from collections.abc import Sequence

from detectron2.data import MetadataCatalog, get_detection_dataset_dicts

__all__ = ['check_categories', 'training_set']


def check_categories(
    names: str | Sequence[str], num_classes: int | None = None, num_stuff: int | None = None
) -> None:
    """Compare data sets with a detector, where both tell how many categories they have.

    Args:
        names: Names of data sets that were loaded.
        num_classes: Of the boxes and masks of the detector.
        num_stuff: Of its semantic segmentation.

    Raises:
        ValueError: They differ. With fewer categories than the detector has, some of its outputs
            would never be trained; with more, some objects would be background.
    """
    for name in [names] if isinstance(names, str) else names:
        for kind, wanted in (('thing_classes', num_classes), ('stuff_classes', num_stuff)):
            given = MetadataCatalog.get(name).get(kind)
            if wanted is not None and given is not None and len(given) != wanted:
                raise ValueError(
                    f'the data set {name} has {len(given)} categories ({kind}: '
                    f'{", ".join(given[:3])}...), but the detector has {wanted}: NUM_CLASSES in '
                    'yaml, num_classes in a LazyConfig'
                )


def training_set(
    names: str | Sequence[str], *, num_classes: int | None = None, num_stuff: int | None = None,
    **kwargs,
) -> list[dict]:  # fmt: skip
    """detectron2's ``get_detection_dataset_dicts``, with :func:`check_categories`."""
    dicts = get_detection_dataset_dicts(names, **kwargs)
    check_categories(names, num_classes, num_stuff)
    return dicts
