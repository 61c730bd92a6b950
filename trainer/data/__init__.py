"""Training data: reading it, serving it in a reproducible order, and preparing it.

A dataset is any object with (see `Dataset`)

    name            str, what messages call it
    resolution      height and width of what it serves, pixels or latents
    channels        C of what it serves; latents have 8, the mean and standard deviation of 4
    num_classes     0 where there are no labels
    encoder_name    'pixels' or 'latents', as `autoguide_fast.encoders.encoder` takes it
    len(d)
    d.batch(indices) -> (images, labels)
                    uint8 or float32 [n, C, H, W]; int64 [n], or None where there are no labels

whose `batch` may be called from several threads at once and which can be pickled. It may have

    d.digest()      str, a checksum of images and labels, wherever they lie; made without decoding

by which a resumed run knows its data again; and, where that means to read them all,

    d.stamp()       str, another that is cheap and stays only while nothing has been written to them

`open_dataset` opens every kind there is, `order` and
`Loader` serve any.
"""

from .datasets import Dataset, open_dataset
from .loader import Batch, Loader
from .order import dropped_labels, flips, order

__all__ = ["Batch", "Dataset", "Loader", "dropped_labels", "flips", "open_dataset", "order"]
