"""`lowbit train` and `lowbit infer`: what they are asked for, and what cannot be."""

import json
import threading

import pytest
import yaml

from lowbit.checkpoint.work_folder import claimed
from lowbit.cli.train_options import CONFIGS
from lowbit.cli.train_outcome import sample_lines
from lowbit.data.glue_tasks import find_task
from lowbit.evaluation.study import Measurement, Sample
from lowbit.training.architecture import Architecture
from lowbit.training.ending import Outcome
from tests.models import make
from tests.training import reversing
from tests.training.test_squad import VOCABULARY, paragraph, words


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "bert"
    make("bert").save_pretrained(folder)
    words(*VOCABULARY).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--qat-start", "3"], "--qat-start says how integers are trained towards: give a --qat"),
        (["--ranges", "ema", "--bcq", "3"], "--ranges says how integers are trained towards"),
        (["--qat", "int8", "--ema-decay", "0.9"], "--ema-decay is of --ranges ema"),
        (["--project-every", "9"], "--project-every says how binary codes are trained"),
        (["--groups", "group:64", "--qat", "int8"], "--groups says how binary codes are trained"),
        (["--batch-size", "0"], "batch_size must be at least 1, not 0"),
        (["--qat", "."], "--qat takes the folder . for its value: write --qat int8-all"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(lowbit, source, tmp_path, more, sentence):
    given = ("train", "squad", source, "--data", tmp_path, "-o", tmp_path / "out", *more)
    code, out, err = lowbit(*given)
    assert code == 2 and sentence in err and err.count("\n") <= 2, err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["int8-all", "none"])
def test_a_folder_that_is_called_as_a_recipe_is_not_taken_for_a_model(
    lowbit, source, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    code, _, err = lowbit("train", "squad", source, "--qat", name, "--data", "no", "-o", "out")
    assert code and "for its value" not in err and "no" in err


@pytest.mark.parametrize("option", ["--width", "--vocabulary"])
def test_a_model_has_its_own_sizes(lowbit, source, tmp_path, option):
    given = ("train", "translation", source, "--data", tmp_path / "a.tsv", "-o", tmp_path / "out")
    code, _, err = lowbit(*given, option, "64")
    assert code == 2 and f"{option} is of a new translator: MODEL has its own" in err


@pytest.mark.parametrize("option", ["--name", "--source-column"])
def test_an_option_of_another_task_is_unknown(lowbit, source, tmp_path, option):
    given = ("train", "squad", source, "--data", tmp_path, "-o", tmp_path / "out")
    code, _, err = lowbit(*given, option, "2")
    assert code == 2 and f"No such option: {option}" in err


@pytest.mark.parametrize(
    ("task", "shown"),
    [("squad", ("384", "5e-05")), ("translation", ("128", "0.001", "inverse_sqrt", "20.0"))],
)
def test_the_help_of_a_task_shows_its_own_defaults(lowbit, task, shown):
    code, out, _ = lowbit("train", task, "--help")
    assert code == 0 and all(f"[default: {value}]" in out for value in shown), out


def test_a_new_translator_has_no_tokenizer_whose_case_could_be_changed(lowbit, tmp_path):
    given = ("train", "translation", "--data", tmp_path / "a.tsv", "-o", tmp_path / "out")
    code, _, err = lowbit(*given, "--lower-case")
    assert code == 2 and "--lower-case is of MODEL's tokenizer" in err


def test_squad_trains_with_its_own_length_and_is_inferred_with_the_same(lowbit, source, tmp_path):
    for split in ("train", "dev"):
        stored = {"data": [{"paragraphs": [paragraph(n) for n in range(8)]}]}
        (tmp_path / f"{split}-v1.1.json").write_text(json.dumps(stored))
    given = ("train", "squad", source, "--data", tmp_path, "--max-steps", 1, "-q")
    # This model reads fewer tokens than SQuAD's windows usually have.
    code, _, err = lowbit(*given, "-o", tmp_path / "out")
    assert code != 0 and "384" in err
    lengths = ("--max-length", 24, "--stride", 4)
    code, _, err = lowbit(*given, *lengths, "-o", tmp_path / "out")
    assert code == 0, err
    config = json.loads((tmp_path / "out" / "float" / "config.json").read_text())
    assert config["trained_for"] == {"task": "squad"}
    asked = ("infer", tmp_path / "out" / "float", "--task", "squad", "--data", tmp_path)
    asked = (*asked, "--split", "dev", "-o", tmp_path / "answers.json")
    code, _, err = lowbit(*asked)
    assert code != 0 and "384" in err
    code, _, err = lowbit(*asked, *lengths)
    assert code == 0, err
    assert set(json.loads((tmp_path / "answers.json").read_text())) == {str(n) for n in range(8)}


@pytest.fixture
def written_elsewhere(tmp_path):
    """An output that another run writes."""
    out, known, over = tmp_path / "out", threading.Event(), threading.Event()

    def run():
        with claimed(out):
            known.set()
            over.wait()

    thread = threading.Thread(target=run)
    thread.start()
    known.wait()
    yield out
    over.set()
    thread.join()


def test_a_second_run_of_an_output_is_told_before_it_loads_anything(
    lowbit, source, tmp_path, written_elsewhere, monkeypatch
):
    loads = ("lowbit.checkpoint.load.load_tokenizer", "lowbit.training.translation.new_tokenizer")
    for load in loads:
        monkeypatch.setattr(load, lambda *_: pytest.fail("it loads"))
    for given in (("squad", source), ("translation",)):
        code, _, err = lowbit("train", *given, "--data", tmp_path, "-o", written_elsewhere)
        assert code == 2 and f"another run writes {written_elsewhere}" in err


@pytest.mark.parametrize(
    ("there", "sentence"),
    [
        ("out/training.json", "holds a training that was finished before: --resume continues"),
        ("out/float/config.json", "float exists, and lowbit did not write it"),
        ("out", "is a file"),
    ],
)
def test_an_output_that_is_there_is_refused_before_anything_is_loaded(
    there, sentence, lowbit, source, tmp_path, monkeypatch
):
    monkeypatch.setattr("lowbit.checkpoint.load.load_tokenizer", lambda *_: pytest.fail("it loads"))
    (tmp_path / there).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / there).write_text("mine")
    given = ("squad", source, "--data", tmp_path, "-o", tmp_path / "out")
    code, _, err = lowbit("train", *given)
    assert code == 2 and sentence in " ".join(err.split()), err
    assert (tmp_path / there).read_text() == "mine"


@pytest.fixture
def glue(tmp_path):
    """MRPC and RTE in GLUE's layouts."""
    heads = {
        "MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        "RTE": "index\tsentence1\tsentence2\tlabel",
    }
    for folder, head in heads.items():
        (tmp_path / folder).mkdir()
        for split in ("train", "dev", "test"):
            lines = [head]
            for n in range(12):
                texts = f"who came\tthen {VOCABULARY[n % 7]}"
                label = ("entailment", "not_entailment")[n % 2]
                lines.append(
                    f"{n % 2}\t1\t2\t{texts}" if folder == "MRPC" else f"{n}\t{texts}\t{label}"
                )
            (tmp_path / folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_json_is_one_object_and_quiet_is_silent(lowbit, source, glue):
    given = ("train", "glue", source, "--name", "MRPC", "--data", glue, "--max-length", 24)
    given = (*given, "--max-steps")
    code, out, err = lowbit(*given, 11, "--qat", "--json", "--baseline", "-o", glue / "out")
    assert code == 0, err
    told = json.loads(out)  # nothing before it, and nothing after
    assert list(told["measurements"]) == ["float", "fake-quantized", "integer"]
    assert any("loss" in line for line in told["history"])
    assert told["folders"][1] == str(glue / "out" / "int8-all")
    assert told == json.loads((glue / "out" / "training.json").read_text())
    assert err == ""
    code, out, err = lowbit(*given, 1, "--qat", "-q", "-o", glue / "quiet")
    assert (code, out, err) == (0, "", "")


def test_long_texts_are_cut_in_what_is_shown():
    sample = Sample("short", "b" * 400, "c" * 300)
    found = Measurement("glue", "x", 1, "rows", {}, {}, samples=(sample,))
    lines = list(sample_lines(Outcome(1, 1.0, {"float": found}, ())))
    assert lines[0] == "source     short" and lines[1] == "reference  " + "c" * 300
    assert lines[2] == "output     " + "b" * 300 + " … (400 characters)"


def test_a_baseline_is_a_column_and_the_loss_a_line(lowbit, source, glue):
    given = ("train", "glue", source, "--name", "rte", "--data", glue, "--max-steps", 2)
    given = (*given, "--max-length", 24)
    code, out, err = lowbit(*given, "--baseline", "-o", glue / "out", "--qat")
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if "accuracy, loss" in line]
    assert line.count("%") == 2 and "…" in line
    titles = next(line for line in out.splitlines() if "integer" in line and "float" in line)
    assert titles.split() == ["float", "fake-quantized", "integer"]


@pytest.fixture
def trained(lowbit, source, glue):
    given = ("train", "glue", source, "--name", "mrpc", "--data", glue, "--max-steps", 1)
    code, _, err = lowbit(*given, "--max-length", 24, "-q", "-o", glue / "out")
    assert code == 0, err
    return glue / "out" / "float"


def test_a_model_is_asked_for_its_own_task(lowbit, glue, trained):
    asked = ("infer", trained, "--task", "glue", "--data", glue, "-o", glue / "found.tsv")
    code, _, err = lowbit(*asked, "--name", "rte")
    assert code == 2 and "trained for GLUE mrpc" in err and "not for rte: give --name mrpc" in err
    assert not (glue / "found.tsv").exists()
    for spelling in ((), ("--name", "MRPC"), ("--name", "mrpc")):
        code, _, err = lowbit(*asked, *spelling, "--overwrite")
        assert code == 0, err
        labels = {line.split("\t")[1] for line in (glue / "found.tsv").read_text().splitlines()}
        assert labels <= {"prediction", "equivalent", "not_equivalent"}
    code, _, err = lowbit("eval", trained, "--task", "glue", "--data", glue, "--name", "rte")
    assert code == 2 and "trained for GLUE mrpc" in err


@pytest.mark.parametrize("spelled", ["STS-B", "sts_b", "stsb", "SST-2", "sst2", "CoLA", "mnli"])
def test_every_usual_spelling_of_a_task_is_known(spelled):
    assert find_task(spelled).name == spelled.lower().replace("-", "").replace("_", "")


def test_squads_public_data_is_inferred_without_naming_a_split(lowbit, source, tmp_path):
    for split in ("train", "dev"):
        stored = {"data": [{"paragraphs": [paragraph(n) for n in range(8)]}]}
        (tmp_path / f"{split}-v1.1.json").write_text(json.dumps(stored))
    given = ("train", "squad", source, "--max-steps", 1, "-q", "-o", tmp_path / "out")
    code, _, err = lowbit(*given, "--data", tmp_path / "train-v1.1.json", "--max-length", 24)
    assert code == 2 and "is one file; a model must not be scored on its training data" in err
    code, _, err = lowbit(*given, "--data", tmp_path, "--max-length", 24, "--stride", 30)
    assert code == 2 and "overlap by 30 (--stride)" in err and "at most --stride 10 fits" in err
    code, _, err = lowbit(*given, "--data", tmp_path, "--max-length", 24)
    assert code == 0, err
    asked = ("infer", tmp_path / "out" / "float", "--task", "squad", "--data", tmp_path)
    code, _, err = lowbit(*asked, "--max-length", 24, "-o", tmp_path / "answers.json")
    assert code == 0, err


def test_a_file_says_what_is_not_typed(lowbit, source, glue):
    file = glue / "settings.yaml"
    file.write_text(
        f"model: {source}\nname: mrpc\ndata-dir: {glue}\nmax_steps: 3\nmax-length: 24\n"
    )
    given = ("train", "glue", "--config", file, "--json")
    code, out, err = lowbit(*given, "-o", glue / "out", "--qat")
    assert code == 0, err
    assert json.loads(out)["steps"] == 3 and (glue / "out" / "int8-all").is_dir()
    code, out, err = lowbit(*given, "--max-steps", 2, "-o", glue / "typed")
    assert code == 0 and json.loads(out)["steps"] == 2, err
    file.write_text(file.read_text() + "qat: true\n")
    code, out, err = lowbit(*given, "-o", glue / "bare")
    assert code == 0 and (glue / "bare" / "int8-all").is_dir(), err
    for text, sentence in (
        ("max_stepz: 3\n", "has the key 'max_stepz', which is not an option"),
        ("- 3\n", "is not a mapping of options to values"),
        ("a: [\n", "is not valid YAML"),
        ("config: small\n", "has the key 'config', which is not an option"),
        ("free: true\nstraight: true\n", "the key 'straight', and another one for the same"),
        ("no-evaluate: 3\n", "no-evaluate must be true or false, not 3"),
    ):
        file.write_text(text)
        code, _, err = lowbit("train", "glue", "--config", file, "-o", glue / "no")
        assert code == 2 and sentence in err, err
    code, _, err = lowbit("train", "glue", "--config", glue / "none.yaml", "-o", glue / "no")
    assert code == 2 and "cannot be read" in err and "base, medium, small" in err


@pytest.mark.parametrize(("said", "straight"), [("free: true", False), ("straight: true", True)])
def test_a_file_may_say_the_second_name_of_an_option(lowbit, tmp_path, monkeypatch, said, straight):
    found = {}
    monkeypatch.setattr("lowbit.cli.train._learn", lambda *given, **_: found.update(codes=given[7]))
    (tmp_path / "settings.yaml").write_text(f"{said}\nat-once: false\nbcq: 2\n")
    given = ("--config", tmp_path / "settings.yaml", "--data", tmp_path, "-o", tmp_path / "out")
    code, _, err = lowbit("train", "language", "model", *given)
    assert code == 0, err
    assert found["codes"].straight is straight and found["codes"].phases is True


@pytest.mark.parametrize(("name", "millions"), [("small", 5.3), ("medium", 10), ("base", 60)])
def test_shipped_settings_have_the_sizes_that_they_name(name, millions):
    stored = yaml.safe_load(CONFIGS[name].read_text())
    sizes = Architecture(
        stored["architecture"], stored["layers"], stored["width"], stored["feed-forward"]
    )
    d, f = sizes.width, sizes.feed_forward
    # Attention has four matrices, and a decoder has two attentions.
    layers = sizes.layers * ((4 * d * d + 2 * d * f) + (8 * d * d + 2 * d * f))
    assert stored["vocabulary"] * d + layers == pytest.approx(millions * 1e6, rel=0.05)


def test_pairs_of_the_hub_are_not_fetched_against_the_users_will(lowbit, tmp_path):
    code, _, err = lowbit("train", "translation", "--config", "small", "-o", tmp_path / "out")
    assert code == 2 and "HF_HUB_OFFLINE forbids that" in err and "multi30k" in err


def test_a_translation_ends_on_its_test_set(lowbit, tmp_path):
    data = reversing.write(tmp_path / "data", train=60, valid=10)
    (data / "test.tsv").write_text("ba bo da do\tdo da bo ba\nfa fo ga go\tgo ga fo fa\n")
    given = ("train", "translation", "--data", data, "--vocabulary", 275, "--layers", 1)
    given = (*given, "--width", 64, "--feed-forward", 64, "--heads", 2, "--max-steps", 4)
    codes = ("--bcq", 2, "--frozen", 0, "--project-every", 0)
    code, out, err = lowbit(*given, *codes, "--json", "-o", tmp_path / "out")
    assert code == 0, err
    told = json.loads(out)
    assert told["test"]["integer"]["items"] == 2
    assert {"bleu", "chrf"} <= told["test"]["integer"]["metrics"].keys()
    written = (tmp_path / "out" / "output.txt").read_text().splitlines()
    assert written == told["test"]["integer"]["predictions"]
    wanted = (tmp_path / "out" / "ref.txt").read_text().splitlines()
    assert wanted == ["do da bo ba", "go ga fo fa"]
    logged = [line for line in told["history"] if "train_accuracy" in line]
    assert logged and all(0 <= line["train_accuracy"] <= 1 for line in logged)
    assert any("before_projection_bleu" in line for line in told["history"])
    (changes,) = [line["projection"] for line in told["history"] if "projection" in line][-1:]
    assert changes and all(0 < change < 1 for change in changes.values())
    again = (*given, *codes, "--resume", "-o", tmp_path / "out")
    code, _, err = lowbit(*again)
    assert code == 2 and "no checkpoint to go on from" in err


def test_a_translator_goes_on_with_its_own_vocabulary(lowbit, tmp_path):
    data = reversing.write(tmp_path / "data", train=60, valid=10)
    given = ("train", "translation", "--data", data, "--layers", 1, "--width", 64, "--heads", 2)
    given = (*given, "--feed-forward", 64, "--max-steps", 1, "-o", tmp_path / "out")
    assert lowbit(*given, "--vocabulary", 275)[0] == 0
    words = (tmp_path / "out" / "float" / "tokenizer.json").read_text()
    code, _, err = lowbit(*given, "--vocabulary", 270, "--resume")
    assert code == 2 and "began with tokenizer of 275 tokens" in err, err
    assert (tmp_path / "out" / "float" / "tokenizer.json").read_text() == words
