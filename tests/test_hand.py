"""Runs by hand: where their results go, what they read, and that results which are finished stay."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import Refuse

from satm.cli import main
from satm.config import Layout
from satm.config.layout import FOLDERS
from satm.results.columns import EVALUATION
from satm.results.distilled import load_distilled
from satm.results.rows import read_rows, read_rows_metadata
from satm.storage.identity import hash_file
from satm.workflow.rules import RULES

RUN, HAND = Path("results/tiny"), Path("results/hand")
CONFIG = ("--config", "tiny.yaml")
CELL = ("--dataset", "digits", "--ipc", "1", "--method")
SATM = ("--config", "tiny.yaml", *CELL, "satm")
OTHER = ("distill", *SATM, "--iterations", "2")
"""A distillation with another option than the campaign's."""
SET = Path("distilled/digits/ipc-1/satm/seed-0/distilled.safetensors")
EVALUATED = Path("evaluation/digits/ipc-1/satm/seed-0/convnet.parquet")
DONE = "is finished already; --overwrite makes it again"


def contents(folder: Path) -> dict[Path, bytes]:
    """Return every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def iteration(folder: Path) -> int:
    """Return the last iteration of the distillation below a folder."""
    return load_distilled(folder / SET).iteration


def set_evaluated(folder: Path) -> str:
    """Return the hash of the set that was evaluated below a folder."""
    found: str = read_rows_metadata(folder / EVALUATED, EVALUATION)["options"]["distilled"]
    return found


def hash_of_set(folder: Path) -> str:
    """Return the hash of the set below a folder."""
    return hash_file(folder / SET)


# Without a campaign


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images and experts of digits that were made by hand, of options that are no preset's."""
    monkeypatch.chdir(tmp_path)
    assert main(["data", "--dataset", "digits"]) == 0
    few = ("--count", "2", "--epochs", "4", "--batch-size", "512")
    assert main(["experts", "--dataset", "digits", *few]) == 0
    return tmp_path


SHORT = ("--iterations", "2", "--inner-steps", "2", "--expert-epochs", "1", "--max-start-epoch", "3")


def test_without_a_campaign_the_next_command_knows_the_options_of_the_last(alone: Path, refused: Refuse) -> None:
    told = refused("distill", *CELL, "mtt", *SHORT[:-1], "9")
    assert "to epoch 9 goes beyond the 4 epochs of the experts" in told
    assert main(["distill", *CELL, "mtt", *SHORT]) == 0
    assert main(["evaluate", *CELL, "mtt", "--repeats", "1", "--epochs", "2"]) == 0
    default = HAND / "default"
    assert [path.name for path in Path("results").iterdir()] == ["hand"]
    assert [path.name for path in HAND.iterdir()] == ["default"]
    made = load_distilled(default / "distilled/digits/ipc-1/mtt/seed-0/distilled.safetensors")
    assert made.iteration == 2 and made.options["max_start_epoch"] == 3
    manifest = json.loads((default / "experts/digits/sgd/manifest.json").read_text())
    assert manifest["identity"]["recipe"]["epochs"] == 4 and len(manifest["shards"]) == 2
    assert (default / "evaluation/digits/ipc-1/mtt/seed-0/convnet.parquet").is_file()


def test_a_named_run_reads_the_run_without_a_name_and_changes_nothing_of_it(alone: Path) -> None:
    before = contents(HAND / "default")
    assert main(["distill", *CELL, "mtt", *SHORT, "--run", "short"]) == 0
    assert main(["evaluate", *CELL, "mtt", "--repeats", "1", "--epochs", "1", "--run", "short"]) == 0
    assert contents(HAND / "default") == before
    assert (HAND / "short/evaluation/digits/ipc-1/mtt/seed-0/convnet.parquet").is_file()
    assert not (HAND / "short/experts").exists() and not (HAND / "short/data").exists()


def test_experts_of_other_options_are_refused_or_replaced(alone: Path, refused: Refuse) -> None:
    other = ("experts", "--dataset", "digits", "--count", "2", "--epochs", "3", "--batch-size", "512")
    before = contents(HAND / "default/experts")
    told = refused(*other)
    assert "expert 0 in results/hand/default/experts/digits/sgd is trained, but differs: recipe.epochs" in told
    assert "expected 3, found 4" in told and "add --overwrite to replace it, or --run NAME to keep both" in told
    assert contents(HAND / "default/experts") == before
    assert main([*other, "--run", "three"]) == 0
    assert contents(HAND / "default/experts") == before
    assert main(["distill", *CELL, "mtt", *SHORT[:-1], "2", "--run", "three"]) == 0, "these experts are known"
    assert main([*other, "--overwrite"]) == 0
    manifest = json.loads((HAND / "default/experts/digits/sgd/manifest.json").read_text())
    assert manifest["identity"]["recipe"]["epochs"] == 3


def test_experts_trained_again_or_refused_are_known_as_before(alone: Path, refused: Refuse) -> None:
    """Neither the same command nor a refused one changes the options that the next command expects."""
    few = ("experts", "--dataset", "digits", "--count", "2", "--epochs", "4", "--batch-size", "512")
    before = contents(HAND / "default/options")
    assert main(list(few)) == 0
    assert contents(HAND / "default/options") == before
    refused(*few[:5], "--epochs", "3")
    assert contents(HAND / "default/options") == before
    assert main(["distill", *CELL, "mtt", *SHORT]) == 0


def test_a_set_made_again_is_known_as_before(alone: Path, refused: Refuse) -> None:
    for _ in range(2):
        assert main(["distill", *CELL, "mtt", *SHORT, "--overwrite"]) == 0
    refused("distill", *CELL, "mtt", *SHORT, "--lr-images", "7")
    assert main(["evaluate", *CELL, "mtt", "--repeats", "1", "--epochs", "1"]) == 0


# With a campaign


def test_the_options_of_the_campaign_write_below_its_root_even_if_they_are_given(campaign: Path) -> None:
    assert main(["evaluate", *SATM, "--epochs", "3", "--network", "small"]) == 0
    assert (RUN / EVALUATED.with_name("small.parquet")).is_file() and not HAND.exists()


def test_a_differing_option_leaves_the_campaign_as_it_is(campaign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(RUN)
    assert main(list(OTHER)) == 0
    told = capsys.readouterr().out
    assert "by hand: options that differ from tiny.yaml: iterations; results below results/hand/tiny" in told
    assert "commands with --run tiny read these results" in told
    assert main(["evaluate", *SATM, "--run", "tiny"]) == 0
    assert contents(RUN) == before
    assert iteration(HAND / "tiny") == 2 and iteration(RUN) == 3
    assert set_evaluated(HAND / "tiny") != set_evaluated(RUN)
    assert not (HAND / "tiny/experts").exists(), "experts are those of the campaign"


def test_without_the_name_of_the_run_commands_use_the_sets_of_the_campaign(campaign: Path) -> None:
    assert main(list(OTHER)) == 0
    (RUN / EVALUATED).unlink()
    assert main(["evaluate", *SATM]) == 0
    assert set_evaluated(RUN) != hash_of_set(HAND / "tiny")


def test_without_its_name_a_run_by_hand_reads_the_campaign_alone(
    campaign: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another option of an evaluation does not exchange the set for the one that lies in the same run."""
    assert main([*OTHER]) == 0
    capsys.readouterr()
    assert main(["evaluate", *SATM, "--repeats", "1"]) == 0
    assert set_evaluated(HAND / "tiny") == hash_of_set(RUN) != hash_of_set(HAND / "tiny")
    assert f"synthetic set: {RUN / SET}" in capsys.readouterr().out
    assert main(["evaluate", *SATM, "--repeats", "1", "--run", "tiny", "--overwrite"]) == 0
    assert set_evaluated(HAND / "tiny") == hash_of_set(HAND / "tiny")
    assert f"synthetic set: {HAND / 'tiny' / SET}" in capsys.readouterr().out


def test_the_tables_of_a_campaign_do_not_see_runs_by_hand(campaign: Path) -> None:
    text = Path("tiny.yaml").read_text().replace("methods: [random, mtt, satm]", "methods: [satm]")
    Path("tiny.yaml").write_text(text)
    assert main(["table", *CONFIG]) == 0
    before = (RUN / "table2.csv").read_bytes()
    assert main(list(OTHER)) == 0
    assert main(["evaluate", *SATM, "--run", "tiny", "--epochs", "1"]) == 0
    assert main(["table", *CONFIG]) == 0
    assert (RUN / "table2.csv").read_bytes() == before


def test_a_run_of_other_experts_is_a_chain_of_its_own(campaign: Path) -> None:
    before = contents(RUN)
    assert main(["experts", *CONFIG, "--dataset", "digits", "--epochs", "4", "--run", "more"]) == 0
    late = ("--min-start-epoch", "3", "--max-start-epoch", "4")
    assert main(["distill", *SATM, *late, "--run", "more"]) == 0, "the campaign's experts have three epochs"
    assert main(["analyse", *SATM, "--segments", "1", "--run", "more"]) == 0
    assert main(["evaluate", *SATM, "--run", "more"]) == 0
    assert contents(RUN) == before
    assert load_distilled(HAND / "more" / SET).options["max_start_epoch"] == 4


# Finished results


@pytest.mark.parametrize("what", ["distill", "evaluate"])
def test_the_same_command_again_does_nothing(campaign: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    path = RUN / {"distill": SET, "evaluate": EVALUATED}[what]
    held = path.stat()
    assert main([what, *SATM]) == 0
    assert DONE in capsys.readouterr().out
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (held.st_ino, held.st_mtime_ns)
    content = path.read_bytes()
    assert main([what, *SATM, "--overwrite"]) == 0
    assert DONE not in capsys.readouterr().out and path.stat().st_mtime_ns != held.st_mtime_ns
    if what == "distill":
        assert path.read_bytes() == content


def test_a_second_distillation_of_other_options_is_refused_replaced_or_kept_beside(
    campaign: Path, refused: Refuse
) -> None:
    assert main(list(OTHER)) == 0
    before = contents(HAND / "tiny/distilled")
    third = (*OTHER[:-1], "1")
    told = refused(*third)
    assert "is finished, but differs: options.iterations: expected 1, found 2; add --overwrite to replace it" in told
    assert told.rstrip().endswith("or --run NAME to keep both (it reads nothing of this run)")
    assert contents(HAND / "tiny/distilled") == before
    assert main(["evaluate", *SATM, "--run", "tiny"]) == 0, "what was refused has changed no options either"
    assert main([*third, "--run", "other"]) == 0
    assert (iteration(HAND / "tiny"), iteration(HAND / "other")) == (2, 1)
    assert main([*third, "--overwrite"]) == 0
    assert iteration(HAND / "tiny") == 1


def test_a_changed_campaign_replaces_its_results_only_when_asked_to(campaign: Path, refused: Refuse) -> None:
    path = Path("tiny.yaml")
    path.write_text(path.read_text().replace("iterations: 3", "iterations: 2"))
    told = refused("distill", *SATM)
    assert "is finished, but differs: options.iterations: expected 2, found 3; add --overwrite" in told
    assert iteration(RUN) == 3
    assert main(["distill", *SATM, "--run", "short"]) == 0
    assert (iteration(RUN), iteration(HAND / "short")) == (3, 2)
    assert main(["distill", *SATM, "--overwrite"]) == 0
    assert iteration(RUN) == 2


def test_an_evaluation_of_a_replaced_set_is_another(campaign: Path, refused: Refuse) -> None:
    assert main([*OTHER, "--run", "one"]) == 0
    assert main(["evaluate", *SATM, "--run", "one"]) == 0
    first = read_rows(HAND / "one" / EVALUATED, EVALUATION)
    assert main([*OTHER[:-1], "1", "--run", "one", "--overwrite"]) == 0
    told = refused("evaluate", *SATM, "--run", "one")
    assert "is finished, but differs: " in told and "--overwrite" in told
    assert read_rows(HAND / "one" / EVALUATED, EVALUATION).equals(first)
    assert main(["evaluate", *SATM, "--run", "one", "--overwrite"]) == 0
    assert set_evaluated(HAND / "one") == hash_of_set(HAND / "one")


# Names


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", ".", "a_b"])
def test_the_name_of_a_run_is_that_of_one_folder(campaign: Path, refused: Refuse, name: str) -> None:
    told = refused(*OTHER, "--run", name)
    assert "--run: " in told and "letters, digits and '-' only" in told
    assert not HAND.exists() and not Path("../x").exists()


@pytest.mark.parametrize("name", ["figures", "data", "tables"])
def test_a_campaign_cannot_have_a_folder_of_the_papers_results(campaign: Path, refused: Refuse, name: str) -> None:
    Path("tiny.yaml").rename(f"{name}.yaml")
    told = refused("table", "--config", f"{name}.yaml")
    assert f"names the folder results/{name}, which belongs to the paper's results; rename it" in told
    used = {Path(path).parts[1] for rule in RULES.values() for path in rule.outputs.values() if path.count("/") > 1}
    layout = Layout("root")
    used |= {Path(path("a")).parts[1] for path in (layout.log, layout.benchmark, layout.state, layout.by_hand)}
    assert used | {"tables"} == FOLDERS


def test_a_campaign_cannot_have_the_folder_of_runs_by_hand(campaign: Path, refused: Refuse) -> None:
    Path("hand.yaml").write_text(Path("tiny.yaml").read_text())
    told = refused("data", "--config", "hand.yaml", "--dataset", "digits")
    assert "names the folder results/hand, that of runs by hand; rename it" in told


def test_a_missing_input_of_a_run_names_the_command_with_the_run(campaign: Path, refused: Refuse) -> None:
    told = refused("evaluate", *CONFIG, *CELL, "mtt", "--run", "mine")
    assert "distill --config tiny.yaml --dataset digits --ipc 1 --method mtt --seed 0 --run mine\n" in told


def test_a_manifest_is_not_replaced_by_one_of_fewer_experts(campaign: Path, refused: Refuse) -> None:
    manifest = Path("results/tiny/experts/digits/sgd/manifest.json")
    text, before = Path("tiny.yaml").read_text(), manifest.read_bytes()
    Path("tiny.yaml").write_text(text.replace("sgd: {count: 2,", "sgd: {count: 1,"))
    digits = ("experts", *CONFIG, "--dataset", "digits")
    for more in ((), ("--collect",)):
        told = refused(*digits, *more)
        assert "manifest.json lists 2 experts, count is 1; add --overwrite to replace it, or --run NAME" in told
    assert manifest.read_bytes() == before
    assert main([*digits, "--overwrite"]) == 0 and len(json.loads(manifest.read_text())["shards"]) == 1
    Path("tiny.yaml").write_text(text)
    assert main([*digits]) == 0 and manifest.read_bytes() == before, "more experts are added"


def test_a_file_of_another_kind_in_place_of_an_expert_is_replaced(campaign: Path) -> None:
    shard = RUN / "experts/digits/sgd/expert-000.safetensors"
    content = shard.read_bytes()
    shard.write_bytes((RUN / "distilled/digits/ipc-1/satm/seed-0/distilled.safetensors").read_bytes())
    assert main(["experts", "--config", "tiny.yaml", "--dataset", "digits"]) == 0
    assert shard.read_bytes() == content


@pytest.mark.parametrize("place", ["a folder", "a link to nothing"])
def test_a_result_that_cannot_be_written_is_refused_before_it_is_computed(
    campaign: Path, refused: Refuse, place: str
) -> None:
    path = RUN / EVALUATED
    if place == "a folder":
        path.unlink()
        path.mkdir()
    else:
        shutil.rmtree(RUN / "evaluation")
        (RUN / "evaluation").symlink_to("/nowhere/evaluation")
    told = refused("evaluate", *SATM, code=1)
    assert "cannot write" in told and ("is a folder; move it away" in told or "is no folder, nor a link to one" in told)
    assert not list(RUN.rglob("state/**/*.safetensors"))


def test_the_command_that_a_refusal_names_has_the_options_of_the_run(campaign: Path, refused: Refuse) -> None:
    """The campaign was changed after a run by hand whose options differ in something else."""
    assert main([*OTHER, "--run", "one"]) == 0
    path = Path("tiny.yaml")
    path.write_text(path.read_text().replace("lr_images: 1,", "lr_images: 2,"))
    told = refused("evaluate", *SATM, "--run", "one")
    command = told.partition(" with: python -m satm ")[2].split()
    assert command[0] == "distill" and command[-3:] == ["--iterations", "2", "--overwrite"], told
    assert main(command) == 0 and iteration(HAND / "one") == 2
    assert main(["evaluate", *SATM, "--run", "one"]) == 0
