"""What the tests share: model, corpora, the installed command; and CI's rule that nothing is skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Where others use the cores too, threads of torch that wait for each other by spinning take many times as long. OpenMP
# reads this when it is loaded: before the imports below, and in every process that a test starts.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# What a GPU does otherwise has tests of its own (inference/test_cuda.py).
if not os.environ.get("TOKZIP_CUDA"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import hypothesis
import pytest

from pipelines import demo

ROOT = Path(__file__).parents[1]
# How long an example takes says nothing on a machine that others use too, and tmp_path may be shared by examples.
hypothesis.settings.register_profile(
    "tokzip",
    hypothesis.settings.get_profile("ci" if os.environ.get("CI") else "default"),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("tokzip")
# Reasons for which a test may be skipped in CI.
ALLOWED_SKIPS = frozenset(
    {
        "no Beam job server for Flink: set TOKZIP_FLINK_JOB_SERVER_JAR (PyPI has none)",
        "no GPU: set TOKZIP_CUDA=1 where there is one",
        "this processor has no bf16",
    }
)


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The folder of all-MiniLM-L6-v2 with its tokenizer."""
    return demo.model_folder()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the real corpora beside the checkout (never part of it)."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real corpora are not beside the checkout (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def demo_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the embedded corpus as three Parquet shards. Read only: all tests share it."""
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    demo.write_corpus(folder)
    return folder


@pytest.fixture(scope="session")
def save_tiny_bert() -> Callable[[Path, int], None]:
    """`save_tiny_bert(folder, vocab_size)`: the weights of a small BERT, random and the same every time."""

    def save(folder: Path, vocab_size: int) -> None:
        import torch
        import transformers

        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=0.2,  # large enough that attention and positions matter
        )
        transformers.AutoModel.from_config(config).save_pretrained(folder)

    return save


@pytest.fixture(scope="session")
def tiny_json() -> str:
    """A WordPiece tokenizer of single letters, loaded in no time."""
    import tokenizers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(c) for c in range(33, 127)]
    vocab = {token: i for i, token in enumerate([*special, *letters, *(f"##{c}" for c in letters), "hello"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(special)
    return made.to_str()


@pytest.fixture(scope="session")
def tiny_model(
    tmp_path_factory: pytest.TempPathFactory, tiny_json: str, save_tiny_bert: Callable[[Path, int], None]
) -> Path:
    """The folder of a BERT of random weights with the tokenizer of single letters. Read only."""
    import tokenizers

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = tokenizers.Tokenizer.from_str(tiny_json)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    save_tiny_bert(folder, tokenizer.get_vocab_size())
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def store() -> Iterator[Any]:
    """An S3 server, `s3_store.Store`; what this process reads and writes by `s3://` goes there too."""
    from s3_store import serve

    with serve() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture
def prism(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beam's Prism runner on PATH, or where `go install` leaves it."""
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{Path.home() / 'go' / 'bin'}")
    if not shutil.which("prism"):
        if os.environ.get("TOKZIP_REQUIRE_PRISM"):
            pytest.fail("TOKZIP_REQUIRE_PRISM is set, and there is no prism on PATH (make prism)")
        pytest.skip("no prism on PATH (make prism builds it)")


@pytest.fixture
def dying(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """`dying(entries, after)`: the environment in which one process kills itself in the middle of its work.

    That is where it renames a manifest entry to a path that begins with `entries`, of which there are `after` by then.
    `TOKZIP_TEST_DIED` is the path of the file that says that it did.
    """

    def environment(entries: Path | str, after: int = 1) -> dict[str, str]:
        died = tmp_path / f"died-{len(list(tmp_path.glob('died-*')))}"
        path = os.pathsep.join(filter(None, [str(Path(__file__).with_name("dying")), os.environ.get("PYTHONPATH")]))
        at = {"TOKZIP_TEST_DIES_AT": str(entries), "TOKZIP_TEST_DIES_AFTER": str(after)}
        return {"PYTHONPATH": path, "TOKZIP_TEST_DIED": str(died), **at}

    return environment


@pytest.fixture(scope="session")
def tokzip() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`tokzip("run", "--input", …)` runs the command in a process of its own and returns it, output captured.

    A non-zero exit fails the test unless `check=False`; `env` adds variables; `timeout` is in seconds.
    """
    start = [str(Path(sys.executable).with_name("tokzip"))]
    if not Path(start[0]).exists():  # not installed here: do what the console script does
        start = [sys.executable, "-c", "import sys; from pipelines.cli import main; sys.exit(main())"]

    def run(
        *args: object, check: bool = True, env: dict[str, str] | None = None, timeout: float = 900
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*start, *map(str, args)],
            cwd=ROOT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"} | (env or {}),
            text=True,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            pytest.fail(f"{done.args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run


def _unexpected_skips(config: pytest.Config) -> list[str]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("CI") or reporter is None:
        return []
    reasons = ((r.nodeid, r.longrepr[2].removeprefix("Skipped: ")) for r in reporter.stats.get("skipped", []))
    return [f"{test}: {reason}" for test, reason in reasons if reason not in ALLOWED_SKIPS]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == pytest.ExitCode.OK and _unexpected_skips(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for skip in _unexpected_skips(config):
        terminalreporter.write_line(f"SKIPPED IN CI, so the run fails: {skip}", red=True)
