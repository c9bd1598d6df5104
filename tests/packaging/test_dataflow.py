"""Dataflow without the cloud: templates against the options they name, and both stages' jobs constructed offline."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.cloud.dataflow_v1beta3.types import TemplateMetadata

from pipelines import cli, compress, embed, options

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "dataflow"
STAGES = {"compress": compress, "embed": embed}
IMAGE = "registry/tokzip:0.1.0"
# What the launcher adds to a template's own parameters. Bucket names must be valid, or Beam asks the cloud for better.
LAUNCHER = [
    "--project=some-project",
    "--region=europe-west4",
    "--job_name=nightly",
    "--temp_location=gs://some-bucket/tmp",
    "--staging_location=gs://some-bucket/staging",
    f"--sdk_container_image={IMAGE}",
    "--labels=goog-dataflow-provided-template-type=flex",
]
instructions = re.findall(r"^(\w+) (.+)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)


def metadata(stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{stage}.json").read_text())
    return found


@pytest.fixture(scope="module")
def launch() -> Any:
    spec = importlib.util.spec_from_file_location("launch", FOLDER / "launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("stage", STAGES)
def test_the_metadata_is_what_dataflow_defines(stage: str) -> None:
    parsed = TemplateMetadata.from_json(json.dumps(metadata(stage)))  # raises for a field that is not of the API
    assert [p.name for p in parsed.parameters] == [p["name"] for p in metadata(stage)["parameters"]]
    assert all(p.label and p.help_text for p in parsed.parameters)


@pytest.mark.parametrize("stage", STAGES)
def test_the_metadata_names_the_stages_own_options(stage: str) -> None:
    known = {o: a for a in STAGES[stage].parser()._actions for o in a.option_strings}
    named = {f"--{p['name'].replace('_', '-')}": p for p in metadata(stage)["parameters"]}
    image = named.pop("--sdk-container-image")
    assert not image.get("isOptional"), "without it, workers would run Beam's image, which has no tokzip"
    assert named.keys() <= known.keys()
    assert {o for o, a in known.items() if a.required} <= named.keys(), "what must be given can be given"
    for option, parameter in named.items():
        action = known[option]
        assert parameter.get("isOptional", False) is not action.required, option
        assert (parameter.get("paramType") == "BOOLEAN") == (action.nargs == 0), option
        allowed = [re.compile(r) for r in parameter.get("regexes", [])]
        for value in action.choices or []:
            assert all(r.match(value) for r in allowed), f"{option}: {value} is a choice"
        assert not action.choices or not any(r.match("no such choice") for r in allowed), option


def test_parameters_become_the_command_line(launch: Any) -> None:
    given = ["--input=gs://corpus/*.parquet", "--output=gs://corpus/out", "--text_column=body", "--split_bytes=8MB"]
    argv = launch.command_line("compress", [*given, "--row_checksum=true", *LAUNCHER])
    parsed = options.parse(compress.parser(), argv[1:])
    assert parsed.args.input == ["gs://corpus/*.parquet"]
    assert (parsed.args.text_column, parsed.args.split_bytes, parsed.args.row_checksum) == ("body", 8_000_000, True)
    assert options.runner_name(parsed.beam) == "DataflowRunner"
    assert set(LAUNCHER) <= set(parsed.beam)
    argv = launch.command_line("compress", [*given, "--row_checksum=false"])
    assert not options.parse(compress.parser(), argv[1:]).args.row_checksum


def test_the_template_image_has_what_it_starts() -> None:
    copies = [arguments.split() for name, arguments in instructions if name == "COPY"]
    (ours,) = [words for words in copies if not words[0].startswith("--from")]
    assert sorted(ours[:-1]) == sorted(p.name for p in FOLDER.iterdir() if p.suffix in (".py", ".json"))
    environment = dict(w.split("=", 1) for name, words in instructions if name == "ENV" for w in words.split())
    assert environment["FLEX_TEMPLATE_PYTHON_PY_FILE"] == f"{ours[-1]}launch.py"
    assert environment["TOKZIP_COMMAND"] == "${COMMAND}"
    assert "ENTRYPOINT" not in dict(instructions), "workers run this image too: Beam's boot program stays"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.txt").write_text("hello world\n" * 20)
    return folder


@pytest.mark.slow
def test_the_launcher_constructs_the_job_of_stage_1(corpus: Path, model_dir: Path, tmp_path: Path) -> None:
    """As the template's container does: the copied files, started by their path from another folder."""
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    parameters = [f"--input={corpus}", f"--output={tmp_path / 'out'}", f"--tokenizer={model_dir}", *LAUNCHER]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "launch.py"), *parameters, "--dry_run=True"],
        cwd=tmp_path,
        env=os.environ | {"TOKZIP_COMMAND": "compress", "PYTHONPATH": str(ROOT)},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("the job of 1 splits is constructed, and not run")
    assert not list((tmp_path / "out").glob("*.parquet"))


@pytest.mark.slow
def test_the_job_of_stage_2_is_for_our_image(
    corpus: Path, model_dir: Path, launch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner

    tokens = tmp_path / "tokens"
    assert cli.main(["compress", "--input", str(corpus), "--output", str(tokens), "--tokenizer", str(model_dir)]) == 0
    jobs = []
    submit = DataflowRunner.run_pipeline

    def keep(self: Any, *args: Any, **kwargs: Any) -> Any:
        jobs.append(result := submit(self, *args, **kwargs))
        return result

    monkeypatch.setattr(DataflowRunner, "run_pipeline", keep)
    parameters = [f"--input={tokens}", f"--output={tmp_path / 'out'}", f"--model={model_dir}", "--precision=fp32"]
    assert cli.main(launch.command_line("embed", [*parameters, *LAUNCHER, "--dry_run=True"])) == 0
    (job,) = jobs
    components = job.job.proto_pipeline.components
    assert any("Embed" in t.unique_name for t in components.transforms.values())
    images = [e.payload for e in components.environments.values() if e.urn.endswith("docker:v1")]
    assert images
    assert all(IMAGE.encode() in payload for payload in images)
