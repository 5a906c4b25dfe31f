"""What people see in a browser of a run: the pages of Prefect and MLflow."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
import pytest
from playwright.sync_api import Browser, Error, Page, sync_playwright

from tasks.result_page import closed_questions
from tests.e2e.services import Prefect
from tests.tasks.test_result_page import HOSTILE


@contextmanager
def chromium(*options: str) -> Iterator[Browser]:
    """Yields a headless Chromium with further options; without one the test is skipped."""
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", *options])
        except Error as error:
            pytest.skip(f"no Chromium (Debian: apt-get install chromium): {error.message.splitlines()[0]}")
        yield browser
        browser.close()


def new_page(browser: Browser, served: dict[str, str]) -> Page:
    """Returns a page of a browser that is logged in to Prefect."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    password = json.dumps(served["PREFECT_API_AUTH_STRING"])
    page.add_init_script(f"localStorage.setItem('prefect-password', btoa({password}))")
    return page


def shown_artifact(served: dict[str, str], key: str) -> str:
    """Returns the page of the latest artifact of a key."""
    wanted = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC", "limit": 1}
    (latest,) = Prefect(served).post("/artifacts/filter", **wanted)
    return f"{served['PREFECT_API_URL'].removesuffix('/api')}/artifacts/artifact/{latest['id']}"


def check_result_pages(served: dict[str, str], browser: Browser, model: str) -> None:
    """Checks that version 1 of `model` is shown in Prefect and MLflow, and that the pages lead to each other."""
    page = new_page(browser, served)
    page.goto(shown_artifact(served, "medpix-summary"))
    page.get_by_role("cell", name="Token F1").wait_for()
    page.get_by_text(f"Version 1 of {model} is not promoted").wait_for()
    in_mlflow, version = (page.get_by_role("link", name=name) for name in ("MLflow run", f"Version 1 of {model}"))
    in_mlflow, version = (str(link.get_attribute("href")) for link in (in_mlflow, version))
    page.goto(in_mlflow)
    page.get_by_text(f"Version 1 of {model} is not promoted").wait_for()
    shown = page.inner_text("body")
    tags = re.findall(r"(kind|recipe|tuning|owner\.host|version\.torch)\b", shown.partition("\nTags\n")[2])
    assert list(dict.fromkeys(tags)) == ["kind", "recipe", "tuning", "owner.host", "version.torch"]
    to_prefect = page.get_by_role("link", name="Prefect flow run").get_attribute("href")
    page.goto(version)
    page.get_by_text("not a medical device").wait_for()
    page.goto(f"{served['MLFLOW_TRACKING_URI']}/#/models/{model}")
    page.get_by_text("Answers questions about medical images").wait_for()
    page.goto(str(to_prefect))
    page.get_by_text("demo full lr=").first.wait_for()


def submit_form(browser: Browser, served: dict[str, str], address: str) -> None:
    """Fills in some fields of the form of medpix-finetune, and submits it."""
    page = new_page(browser, served)
    page.goto(address)
    page.get_by_text("overrides (Optional)").wait_for()
    # The form is short: settings that are rarely changed are in closed tabs.
    assert page.evaluate("Math.max(...[...document.querySelectorAll('*')].map(e => e.scrollHeight))") < 3000
    assert page.get_by_label("weight_decay").count() == 0
    page.get_by_label("path_or_dataset").fill("builtin:phantom?images=40")
    page.get_by_label("num_epochs").fill("2000")
    page.get_by_label("lr").fill("0.002")
    page.get_by_label("tuning").click()
    page.get_by_role("option", name="lora", exact=True).click()
    page.locator("div.group", has=page.get_by_text("registry (Optional)")).get_by_role("tab", name="change").click()
    page.get_by_label("margin").fill("0.5")
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url("**tab=Runs")  # the page that follows a submitted form


def check_that_text_stays_text(served: dict[str, str], browser: Browser) -> None:
    """Checks that text from data is shown as it is in both pages: no script, no link, no image."""
    asked = {text: {"examples": 4, "model": 0.5} for text in HOSTILE}
    shown = closed_questions({"scores": {"model": {}}, "closed_questions": asked})
    artifact = {"key": "hostile", "type": "markdown", "data": shown}
    Prefect(served).post("/artifacts/", **artifact)
    client = mlflow.MlflowClient(served["MLFLOW_TRACKING_URI"])
    run = client.create_run(client.create_experiment("hostile"), tags={"mlflow.note.content": shown})
    client.set_terminated(run.info.run_id)
    in_mlflow = f"{served['MLFLOW_TRACKING_URI']}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    for address in (shown_artifact(served, "hostile"), in_mlflow):
        page = new_page(browser, served)
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        page.goto(address)
        page.get_by_role("cell", name="<script>alert(1)</script> &lt;i&gt;").wait_for()
        links = page.eval_on_selector_all("a, img", "all => all.map(one => one.href || one.src)")
        assert [link for link in links if "evil" in link or link.startswith(("javascript", "mailto"))] == []
