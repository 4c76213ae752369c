"""The named data sets: classes, sizes, checksums and addresses."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

MIB = 1 << 20


@dataclass(frozen=True)
class Remote:
    """A file to download.

    Attributes:
        file: Its name in the cache.
        md5: Checksum of the downloaded file.
        urls: Addresses, in the order to try them.
        most_bytes: A download that exceeds this is stopped.
    """

    file: str
    md5: str
    urls: tuple[str, ...]
    most_bytes: int


@dataclass(frozen=True)
class Entry:
    """A named data set.

    Attributes:
        name: Its name.
        layout: The layout of its files: ``"mnist"``, ``"emnist"`` or ``"cifar"``.
        class_names: Its classes in the order of the labels.
        train: Training images of the canonical data set.
        test: Test images of the canonical data set.
        shape: Channels, height and width of an image.
        content_md5: Of the canonical decompressed IDX files: training images and labels, test
            images and labels; empty where none are published.
        archives: MD5 of each canonical archive, by its file name.
        files: MD5 of each canonical unpacked file, by its name.
        remotes: What to download.
        cache: Folder in the cache (data sets that come in one archive share it).
    """

    name: str
    layout: str
    class_names: tuple[str, ...]
    train: int
    test: int
    shape: tuple[int, int, int]
    remotes: tuple[Remote, ...]
    cache: str
    content_md5: tuple[str, ...] = ()
    archives: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# Long lists are split from texts, since one name per line would fill three screens.
DIGITS = tuple(string.digits)
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
BALANCED = tuple(string.digits + string.ascii_uppercase + "abdefghnqrt")
CIFAR10 = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())  # noqa: SIM905
CIFAR100 = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905
)


def _idx_remotes(md5: tuple[str, ...], bases: tuple[str, ...]) -> tuple[Remote, ...]:
    names = [f"{name}.gz" for name in MNIST_FILES]
    return tuple(
        Remote(name, each, tuple(base + name for base in bases), 64 * MIB)
        for name, each in zip(names, md5, strict=True)
    )


EMNIST_ZIP = Remote(
    "gzip.zip",
    "58c8d27c78d21e728a6bc7b3cc06412e",
    (
        "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
        "https://www.itl.nist.gov/iaui/vip/cs_links/EMNIST/gzip.zip",
    ),
    1024 * MIB,
)


def _emnist(split: str, class_names: tuple[str, ...], train: int, test: int) -> Entry:
    return Entry(
        name=f"emnist-{split}",
        layout="emnist",
        class_names=class_names,
        train=train,
        test=test,
        shape=(1, 28, 28),
        remotes=(EMNIST_ZIP,),
        cache="emnist",
        archives={"gzip.zip": EMNIST_ZIP.md5},
    )


def _cifar(
    classes: int, class_names: tuple[str, ...], binary: str, python: str, files: Mapping[str, str]
) -> Entry:
    archive = f"cifar-{classes}-binary.tar.gz"
    bases = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
    return Entry(
        name=f"cifar{classes}",
        layout="cifar",
        class_names=class_names,
        train=50_000,
        test=10_000,
        shape=(3, 32, 32),
        remotes=(Remote(archive, binary, tuple(base + archive for base in bases), 256 * MIB),),
        cache=f"cifar{classes}",
        archives={archive: binary, f"cifar-{classes}-python.tar.gz": python},
        files=files,
    )


_ENTRIES = (
    Entry(
        name="mnist",
        layout="mnist",
        class_names=DIGITS,
        train=60_000,
        test=10_000,
        shape=(1, 28, 28),
        content_md5=(
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        remotes=_idx_remotes(
            (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
            (
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
            ),
        ),
        cache="mnist",
    ),
    Entry(
        name="fashion-mnist",
        layout="mnist",
        class_names=FASHION,
        train=60_000,
        test=10_000,
        shape=(1, 28, 28),
        content_md5=(
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
        remotes=_idx_remotes(
            (
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
            (
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            ),
        ),
        cache="fashion-mnist",
    ),
    _emnist("balanced", BALANCED, 112_800, 18_800),
    _emnist(
        "byclass",
        tuple(string.digits + string.ascii_uppercase + string.ascii_lowercase),
        697_932,
        116_323,
    ),
    _emnist("bymerge", BALANCED, 697_932, 116_323),
    _emnist("digits", DIGITS, 240_000, 40_000),
    _emnist("letters", tuple(string.ascii_lowercase), 124_800, 20_800),
    _emnist("mnist", DIGITS, 60_000, 10_000),
    _cifar(
        10,
        CIFAR10,
        "c32a1d4ab5d03f1284b67883e8d87530",
        "c58f30108f718f92721af3b95e74349a",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
    ),
    _cifar(
        100,
        CIFAR100,
        "03b5dce01913d631647c71ecec9e9cb8",
        "eb9058c3a382ffc7106e4002c42a8d85",
        {"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    ),
)
CATALOG: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
NAMES = ("digits", *CATALOG)
# Common short forms; the name most similar to them would be another data set.
OTHER_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "fmnist": "fashion-mnist",
        "fashion": "fashion-mnist",
        "emnist": "emnist-balanced",
        "cifar": "cifar10",
    }
)
