"""Whose language is this surname? Read letter by letter.

Surnames of ten languages as faker (MIT) lists them, small letters without accents, so that the spelling has to tell. A
name that two of the languages share is left out, and each of the others stands once, so no name is in both training
and test set (4 to 1).

Source: Robertson's PyTorch tutorial "Classifying names with a character-level RNN" (2017), on other lists. No published
figure for these lists; logistic regression on counts of one to four letters is what there is to beat.

Run ``python -m benchmarks.tasks.surnames`` in the repository's folder; it needs faker.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from importlib import import_module

import numpy as np

import portable_rnn as prnn

from .harness import Task, table

LOCALES = {
    "Croatian": "hr_HR",
    "Dutch": "nl_NL",
    "English": "en_GB",
    "Estonian": "et_EE",
    "Finnish": "fi_FI",
    "French": "fr_FR",
    "German": "de_DE",
    "Italian": "it_IT",
    "Spanish": "es_ES",
    "Swedish": "sv_SE",
}


def plain(name: str) -> str:
    """Small letters without accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", name.lower()) if not unicodedata.combining(c))


def surnames() -> list[tuple[str, int]]:
    """Each name that belongs to one language only, with its language's number; always in the same order."""
    lists = []
    for locale in LOCALES.values():
        provider = import_module(f"faker.providers.person.{locale}").Provider
        lists.append({plain(name) for name in provider.last_names})
    languages = Counter(name for names in lists for name in names)
    return [(name, k) for k, names in enumerate(lists) for name in sorted(names) if languages[name] == 1]


def encoded(names: list[str], alphabet: str) -> tuple[np.ndarray, np.ndarray]:
    """Letters as numbers from 1 on, (N, T), and the lengths; 0 for a letter that the alphabet doesn't have."""
    lengths = np.array([len(name) for name in names])
    x = np.zeros((len(names), lengths.max()), dtype=np.int64)
    for k, name in enumerate(names):
        x[k, : len(name)] = [alphabet.find(c) + 1 for c in name]
    return x, lengths


def split(rng: np.random.Generator, names: list[tuple[str, int]]) -> tuple[list[tuple[str, int]], ...]:
    """Four fifths for training and one for testing."""
    order = rng.permutation(len(names))
    cut = len(names) * 4 // 5
    return [names[k] for k in order[:cut]], [names[k] for k in order[cut:]]


def run(
    seed: int, *, names: list[tuple[str, int]] | None = None, epochs: int = 20, hidden_size: int = 96, batch: int = 64
) -> float:
    """Train on four fifths of the names; the accuracy on the others. The seed also draws the split."""
    training, test = split(np.random.default_rng(seed), names or surnames())
    alphabet = "".join(sorted(set("".join(name for name, _ in training))))
    (x, lengths), (x_test, lengths_test) = (encoded([name for name, _ in part], alphabet) for part in (training, test))
    y, y_test = (np.array([language for _, language in part]) for part in (training, test))
    network = prnn.Sequential(
        prnn.Embedding(len(alphabet) + 1, 48),
        prnn.Dropout(0.2),
        prnn.GRU(48, hidden_size, bidirectional=True, recurrent_dropout=0.25),
        prnn.Max(),
        prnn.Dropout(0.5),
        prnn.Linear(2 * hidden_size, len(LOCALES)),
    )
    model = prnn.Model(network, seed=seed)
    updates = epochs * -(-len(training) // batch)
    model.fit(
        x,
        y,
        lengths=lengths,
        loss="cross_entropy",
        optimizer=prnn.adam(prnn.cosine_decay(5e-3, updates)),
        epochs=epochs,
        batch_size=batch,
        clip_norm=1.0,
        progress=False,
    )
    return float(np.mean(np.argmax(model.predict(x_test, lengths=lengths_test), axis=1) == y_test))


def commonest(seed: int, names: list[tuple[str, int]]) -> float:
    """The accuracy of always answering the language with most names."""
    training, test = (
        np.array([language for _, language in part]) for part in split(np.random.default_rng(seed), names)
    )
    return float(np.mean(test == np.argmax(np.bincount(training))))


def letter_counts(seed: int, names: list[tuple[str, int]]) -> float:
    """The accuracy of logistic regression on counts of one to four letters, ends marked; needs scikit-learn."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    training, test = split(np.random.default_rng(seed), names)
    counts = CountVectorizer(analyzer="char", ngram_range=(1, 4))
    model = make_pipeline(counts, LogisticRegression(max_iter=1000))
    model.fit([f"^{name}$" for name, _ in training], [language for _, language in training])
    return float(model.score([f"^{name}$" for name, _ in test], [language for _, language in test]))


def task() -> Task:
    """The task with the references that this version of faker gives; their mean over the seeds."""
    import faker

    names, seeds = surnames(), (0, 1, 2)
    common, counted = (np.mean([f(seed, names) for seed in seeds]) for f in (commonest, letter_counts))
    return Task(
        name=f"{len(names):,} surnames of ten languages, faker {faker.VERSION}",
        source="PyTorch tutorial 2017, on other lists",
        measure="accuracy",
        reference=f"{common:.2f} (commonest language); {counted:.3f} (logistic regression, 1 to 4 letters)",
        published="none for these lists",
        run=run,
        trained_on="GRU 96, both ways: four fifths of the names, 20 times",
        digits=3,
        seeds=seeds,
    )


if __name__ == "__main__":
    table([task()])
