"""Splits by the names of their folders, as people write them: train, seg_test, Validation-Set, digitstrain."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from trainer.tree import Folder

__all__ = ["UNLABELLED_WORDS", "WRAPPER_WORDS", "rest_of", "split_of", "splits_of", "words_in_order", "words_of"]

SPLIT_WORDS = {
    "train": (
        *("train", "training", "trainieren", "entrenamiento", "treino", "treinamento", "addestramento", "allenamento"),
        *("apprentissage", "entrainement", "egitim", "latih", "обучение", "训练", "訓練", "学習", "훈련", "학습"),
        *("تدريب", "التدريب", "آموزش", "אימון", "प्रशिक्षण", "εκπαίδευση", "навчання"),
    ),
    "val": (
        *("val", "valid", "validate", "validation", "dev", "validierung", "validacion", "validacao", "validazione"),
        *("validasi", "dogrulama", "валидация", "валідація", "验证", "驗證", "検証", "검증", "تحقق", "التحقق"),
        *("اعتبارسنجی", "אימות", "सत्यापन", "επικύρωση"),
    ),
    "test": (
        *("test", "testing", "eval", "evaluation", "holdout", "prueba", "pruebas", "teste", "testes", "uji", "тест"),
        *("测试", "測試", "テスト", "테스트", "시험", "اختبار", "الاختبار", "آزمون", "בדיקה", "מבחן"),
        *("परीक्षण", "δοκιμή"),
    ),
}
"""Split -> words that name it, alone or among other words: seg_train, Test-Set. Accents are ignored."""

UNLABELLED_WORDS = {"pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled"}
"""Words that name a folder of pictures to predict, next to splits: seg_pred."""

WRAPPER_WORDS = {
    *("data", "image", "images", "img", "imgs", "photo", "photos", "pic", "pics", "picture", "pictures", "unknown"),
}
"""Words that name a single folder around pictures or around class folders: test/images, train/images/CLASS."""


def _plain(name: str) -> str:
    """The name in lower case, without accents."""
    apart = unicodedata.normalize("NFKD", name)
    return unicodedata.normalize("NFKC", "".join(one for one in apart if not "\u0300" <= one <= "\u036f")).lower()


WORDS = [(split, _plain(word)) for split, words in SPLIT_WORDS.items() for word in words]


def words_in_order(name: str) -> list[str]:
    """The words of a name in lower case. They are separated by ``_-.``, spaces, or the steps from [a-z] to [A-Z]."""
    return re.split(r"[-_. ]+", _plain(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)))


def words_of(name: str) -> set[str]:
    """The words of a name in lower case."""
    return set(words_in_order(name))


def split_of(name: str) -> str | None:
    """The split that a folder's name contains as a word, in upper or lower case; None if there is none or several.

    A split's word may end in "set" and in digits.

    >>> split_of("seg_train"), split_of("Test-Set"), split_of("trains"), split_of("train_test")
    ('train', 'test', None, None)
    >>> split_of("val2017"), split_of("trainset"), split_of("testImages"), split_of("Validación")
    ('val', 'train', 'test', 'val')
    """
    words = {re.sub(r"(?<=.)(set|[集세]|セット|세트)?\d*$", "", word) for word in words_of(name)}
    found = {split for split, word in WORDS if word in words}
    return found.pop() if len(found) == 1 else None


def rest_of(name: str) -> str:
    """A folder's name without the words of splits.

    >>> rest_of("train_real"), rest_of("TestFake"), rest_of("train2017")
    ('real', 'Fake', '')
    """
    words = re.split(r"[-_. ]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    return "_".join(word for word in words if split_of(word) is None)


def splits_of(folders: Iterable[Folder]) -> dict[str, str]:
    """Name -> split of the folders that name one.

    If none does, a split's word may also be a part of a word, as in digitstrain and digitstest. Then at least two
    folders must have the same name except for that word, and one of them must be train.
    """
    folders = list(folders)
    if found := {folder.name: split for folder in folders if (split := split_of(folder.base)) is not None}:
        return found
    alike: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for folder in folders:
        name = _plain(folder.base)
        for split, word in WORDS:
            before, is_part, after = name.rpartition(word)
            if is_part:
                alike[before, after][folder.name] = split
    sets = [one for one in alike.values() if "train" in one.values() and len(set(one.values())) > 1]
    return max(sets, key=len, default={})
