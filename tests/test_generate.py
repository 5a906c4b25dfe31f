"""Every flag of the generate command, run in this process."""

import io
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.conftest import new_mlflow_store, small_config, tiny_directory
from vlm_core import generate
from vlm_core.arguments import generate_parser
from vlm_core.families import GEMMA3
from vlm_core.generation.answerer import Answerer
from vlm_core.generation.decode import Answer
from vlm_core.models.load import load_model, load_processor
from vlm_core.models.prepare import prepare_model
from vlm_core.models.weights import save_weights

QUESTION = "Is there a lesion in this image?"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model whose answers depend on its image, as full weights and as an adapter over a base model."""
    directory = tmp_path_factory.mktemp("models")
    base = tiny_directory("gemma3")
    config = small_config(**{"peft.dim": 4})
    adapted = prepare_model(config, base, GEMMA3, None)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.7)
    save_weights(adapted, directory / "adapter")
    full = load_model(base, config.model)
    for name, parameter in full.named_parameters():
        if parameter.ndim > 1:  # Otherwise the tied embedding dominates, and each token predicts itself.
            parameter.data.normal_(std=(0.3 if "embed_tokens" in name else 2.0) * parameter.shape[-1] ** -0.5)
    save_weights(full, directory / "full")
    load_processor(base).save_pretrained(directory / "full")
    return {"base": base, "adapter": directory / "adapter", "full": directory / "full"}


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = []
    for name, box in (("one.png", (0, 0, 15, 20)), ("two.png", (5, 5, 30, 9))):
        image = Image.new("L", (30, 20))
        image.paste(220, box)
        image.save(tmp_path / name)
        paths.append(str(tmp_path / name))
    return paths


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def command(*arguments: object, stdin: str = "") -> str:
        monkeypatch.setattr("sys.argv", ["generate", *map(str, arguments)])
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        generate.main(generate_parser(None).parse_args())
        return capsys.readouterr().out

    return command


def asked(run: Any, *arguments: object, **options: Any) -> dict[str, Any]:
    return json.loads(run(*arguments, "--output-format", "json", "--max-new-tokens", 6, **options))


def test_the_answer_alone_is_printed(run: Any, models: dict[str, Path], images: list[str]) -> None:
    arguments = ["--checkpoint-path", models["full"], "--prompt", QUESTION, "--image", images[0]]
    answer = asked(run, *arguments)
    assert run(*arguments, "--max-new-tokens", 6, "--output-format", "text") == answer["response"] + "\n"
    assert answer["response"]
    assert (answer["prompt"], answer["images"], answer["model"]) == (QUESTION, [images[0]], str(models["full"]))
    assert answer["settings"] == {"max_new_tokens": 6, "temperature": 0.0}
    assert answer["finish_reason"] in ("stop", "length")
    assert answer["seconds"] > 0


def test_images_keep_their_order(run: Any, models: dict[str, Path], images: list[str]) -> None:
    arguments = ["--checkpoint-path", models["full"], "--prompt", QUESTION]
    several = [images[:1], images[1:], images, images[::-1], []]
    responses = {asked(run, *arguments, "--image", *shown)["response"] for shown in several}
    assert len(responses) == len(several)
    # A path after --image-url, as in the guide.
    both = asked(run, *arguments, "--image", images[0], f"--image-url={images[1]}")
    assert both["images"] == images
    assert both["response"] == asked(run, *arguments, "--image", *images)["response"]


def test_the_kind_of_a_checkpoint_is_detected(run: Any, models: dict[str, Path], images: list[str]) -> None:
    arguments = ["--prompt", QUESTION, "--image", images[0]]
    guide = ["--is-peft", "--peft-exclude-modules", "*vision_tower*", "*lm_head*"]
    adapter = asked(run, "--checkpoint-path", models["adapter"], *arguments)
    named = asked(run, "--checkpoint-path", models["adapter"], "--base-model", models["base"], *guide, *arguments)
    base = asked(run, "--base-model", models["base"], *arguments)
    assert named["response"] == adapter["response"] != base["response"]
    assert base["model"] == str(models["base"])


def test_sampling_repeats_with_the_same_seed(run: Any, models: dict[str, Path]) -> None:
    arguments = ["--checkpoint-path", models["full"], "--prompt", QUESTION, "--temperature", 2, "--top-p", 0.9]
    first, again, other = (asked(run, *arguments, "--seed", seed) for seed in (1, 1, 2))
    assert first["response"] == again["response"] != other["response"]
    assert first["settings"] == {"max_new_tokens": 6, "temperature": 2.0, "top_p": 0.9, "seed": 1}


def test_many_questions_are_one_per_line(run: Any, models: dict[str, Path], images: list[str], tmp_path: Path) -> None:
    questions = [
        {"prompt": QUESTION, "images": [images[0]]},
        {"prompt": "Which plane?", "images": images},
        {"prompt": "No image."},
    ]
    text = "".join(json.dumps(question) + "\n" for question in questions)
    (tmp_path / "questions.jsonl").write_text(text)
    arguments = ["--checkpoint-path", models["full"], "--max-new-tokens", 6, "--input-file"]
    run(*arguments, tmp_path / "questions.jsonl", "--output-file", tmp_path / "answers.jsonl")
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [answer["prompt"] for answer in answers] == [question["prompt"] for question in questions]
    piped = [json.loads(line)["response"] for line in run(*arguments, "-", stdin=text).splitlines()]
    assert piped == [answer["response"] for answer in answers]
    alone = asked(run, "--checkpoint-path", models["full"], "--prompt", "-", "--image", *images, stdin="Which plane?\n")
    assert alone["response"] == answers[1]["response"]


def test_an_image_of_ones_own_network_is_read_where_that_is_allowed(
    run: Any, models: dict[str, Path], images: list[str], tmp_path: Path
) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    arguments = ["--checkpoint-path", models["full"], "--prompt", QUESTION]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/one.png"
        fetched = asked(run, *arguments, "--image-url", address, "--allow-any-url")
        with pytest.raises(SystemExit, match="only read by https"):
            run(*arguments, "--image-url", address)
        server.shutdown()
    assert fetched["response"] == asked(run, *arguments, "--image", images[0])["response"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "x"], "nothing to load: give --checkpoint-path, --base-model, or both"),
        (["--checkpoint-path", "m"], "give --prompt for one question, or --input-file for many"),
        (["--checkpoint-path", "nowhere", "--prompt", "x"], "no model 'nowhere': neither a directory"),
        (["--checkpoint-path", "m", "--prompt", "x", "--image", "no.png"], "cannot read the image no.png"),
        (["--checkpoint-path", "m", "--prompt", "x", "--image-url", "http://a/b"], "images are only read by https"),
        (["--checkpoint-path", "m", "--prompt", "x", "--image", "no.png", "--top-p", "0.5"], "--top-p has no effect"),
        (["--checkpoint-path", "m", "--input-file", "-"], "line 2 of the input is not a question"),
        (["--checkpoint-path", "m", "--input-file", "-", "--output-format", "text"], "remove --image"),
        (["--checkpoint-path", "models:/none@champion", "--prompt", "x"], "no model 'models:/none@champion' at sqlite"),
    ],
)
def test_wrong_input_is_reported_before_a_model_is_loaded(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr("vlm_core.generate.Answerer", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_mlflow_store(tmp_path))
    with pytest.raises(SystemExit) as stop:
        run(*arguments, stdin='{"prompt": "x"}\n{"question": "y"}\n')
    assert message in str(stop.value)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer("", tokens=1, truncated=False), "is empty: the model ended it at once. "),
        (Answer("", tokens=6, truncated=True), "is empty: its 6 tokens are special tokens or spaces. "),
        (Answer("", tokens=1, truncated=True), "is empty: its 1 tokens are special tokens or spaces. "),
        (Answer("no", tokens=2, truncated=False), None),
    ],
)
def test_an_empty_answer_is_explained(
    models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: Answer,
    why: str | None,
) -> None:
    monkeypatch.setattr(Answerer, "answer", lambda self, conversations, settings: [answer])
    command = ["generate", "--checkpoint-path", str(models["full"]), "--prompt", QUESTION]
    monkeypatch.setattr("sys.argv", command)
    generate.main(generate_parser(None).parse_args())
    said = capsys.readouterr()
    assert said.out == answer.text + "\n"
    if why is None:
        assert "is empty" not in said.err
    else:
        assert f"the answer to '{QUESTION}' {why}The model has probably not learnt to answer" in said.err
