"""The page in a real Chromium: what it shows, what it sends, and what it keeps out."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

import managed
from browser.conftest import TIMEOUT_MS, Tab, expected, vectors
from emberd import TASKS
from fake_reranker import FakeReranker
from fake_server import QWEN, FakeServer
from gateways import Running, serving

QUERY: Final = "Why is the Baltic almost fresh water?"
TEXTS: Final = [
    *managed.PASSAGES.values(),
    "Fresh water freezes at a higher temperature than salt water.",
    "The Baltic states regained their independence in 1991.",
    "Herring from the Baltic are smaller than herring from the Atlantic.",
]
OWN: Final = "Sentence about baking: {text}"

# Ratio of the lightness of each visible text to that of what is behind it, as WCAG 2 defines it.
CONTRASTS: Final = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const colour = (css) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = css;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = (css) => {
        const part = colour(css).slice(0, 3).map((value) => value / 255).map((value) =>
            value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
    };
    const behind = (element) => {
        const css = getComputedStyle(element).backgroundColor;
        return colour(css)[3] || !element.parentElement ? css : behind(element.parentElement);
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        const isShown = walker.currentNode.data.trim() && element.checkVisibility();
        if (!isShown || element.closest(":disabled, script, .skip, option, optgroup")) continue;
        const [one, two] = [light(getComputedStyle(element).color), light(behind(element))];
        const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
        found.push([ratio, walker.currentNode.data.trim().slice(0, 40)]);
    }
    return found;
}"""


def test_the_key_is_asked_for_and_a_wrong_one_opens_nothing(tab: Tab) -> None:
    tab.open("wrong")
    expect(tab.page.get_by_role("alert").first).to_contain_text("not accepted")
    expect(tab.page.locator("#app")).to_be_hidden()
    assert tab.page.evaluate("sessionStorage.length") == 0
    assert [error for error in tab.errors if "401" not in error] == []
    tab.errors.clear()
    tab.page.get_by_label("Key", exact=True).fill(tab.gateway.key)
    tab.page.get_by_role("button", name="Open").click()
    expect(tab.page.locator("#servers tbody tr")).to_have_count(2)
    assert tab.gateway.key not in tab.page.content()
    assert {each.url for each in tab.requests if tab.gateway.key in each.url} == set()


def test_the_key_stays_in_the_tab_until_it_is_forgotten(
    opened: Tab, context: BrowserContext
) -> None:
    opened.page.reload()
    expect(opened.page.locator("#app")).to_be_visible()
    other = context.new_page()
    other.goto(opened.gateway.url)
    expect(other.locator("#key-form")).to_be_visible()
    assert (
        other.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    )
    opened.page.get_by_role("button", name="Forget the key").click()
    opened.page.reload()
    expect(opened.page.locator("#key-form")).to_be_visible()
    expect(opened.page.locator("#app")).to_be_hidden()


def test_it_shows_the_servers_and_what_they_answered(opened: Tab) -> None:
    demo, reranker = (opened.page.locator("#servers tbody tr").nth(at) for at in range(2))
    expect(reranker).to_contain_text("given by URL")
    opened.rank(QUERY, TEXTS)
    expect(demo).to_contain_text("ready")
    expect(demo).to_contain_text("cpu")
    expect(demo.locator("td").nth(3)).to_contain_text(re.compile(r"in \d+ min \d\d s without use"))
    requests = demo.locator("td").nth(4)
    count, *failed = requests.inner_text().split(
        "\n"
    )  # "failed" once another test has made one fail
    assert opened.gateway.post(model="demo", input="one").status_code == 200
    expect(requests).to_have_text("".join([str(int(count) + 1), *failed]))


def test_it_ranks_as_the_vectors_of_the_gateway_do(opened: Tab) -> None:
    opened.page.get_by_label("compare with setting B").uncheck()
    opened.rank(QUERY, TEXTS)
    assert opened.order() == expected(opened.gateway, QUERY, TEXTS)
    assert "Baltic Sea" in opened.rows()[0]["Text"]
    asked = vectors(opened.gateway, [QUERY], input_type="query")[0]
    scores = vectors(opened.gateway, TEXTS) @ asked
    assert [row["Score"] for row in opened.rows()] == [
        f"{scores[place]:.3f}" for place in opened.order()
    ]


def test_another_instruction_changes_the_ranking_and_the_change_is_shown(opened: Tab) -> None:
    opened.page.get_by_role("button", name="Does my instruction help?").click()
    expect(opened.page.locator("#b-own")).to_be_focused()
    opened.page.keyboard.type(OWN)
    expect(opened.page.locator("#b-reads")).to_contain_text("Sentence about baking: ")
    opened.rank(QUERY, TEXTS)
    before = expected(opened.gateway, QUERY, TEXTS)
    after = expected(opened.gateway, QUERY, TEXTS, task=OWN)
    assert before != after
    assert opened.order() == after
    for place, row in enumerate(opened.rows()):
        was, now = before.index(after[place]) + 1, place + 1
        assert (row["Rank in B"], row["In A"]) == (str(now), str(was))
        moved = f"{abs(was - now)}" if was != now else "same"
        assert row["Change"].split()[-1] == moved
        assert ("up" in row["Change"], "down" in row["Change"]) == (was > now, was < now)


def test_the_ticked_texts_decide_which_setting_is_better(opened: Tab) -> None:
    opened.choose("a", prompt="default")
    opened.choose("b", prompt="own", own=OWN)
    opened.rank(QUERY, TEXTS)
    before = expected(opened.gateway, QUERY, TEXTS)
    after = expected(opened.gateway, QUERY, TEXTS, task=OWN)
    first = opened.page.locator("#summary li").first
    expect(first).to_contain_text("Tick")
    places = {text: (before.index(text) + 1, after.index(text) + 1) for text in range(len(TEXTS))}
    better = {was > now for was, now in places.values() if was != now}
    assert better == {True, False}
    for text, (was, now) in places.items():
        box = opened.page.get_by_label(f"Text {text + 1} answers the query")
        box.check()
        if was == now:
            expect(first).to_contain_text(f"rank {now} in both")
        else:
            expect(first).to_contain_text(f"{'B' if now < was else 'A'} is better")
            expect(first).to_contain_text(f"rank {was} in A and rank {now} in B")
        cells = opened.page.locator("#earlier tbody tr").first.locator("td")
        assert cells.all_inner_texts()[3:] == [str(was), str(now)]
        box.uncheck()


def test_shorter_vectors_are_compared(opened: Tab) -> None:
    opened.page.get_by_role("button", name="What do shorter vectors lose?").click()
    expect(opened.page.locator("#b-dimensions")).to_have_value("256")
    expect(opened.page.locator("#b-cut")).to_contain_text("not trained")
    opened.choose("b", dimensions="32")
    opened.rank(QUERY, TEXTS)
    assert opened.order() == expected(opened.gateway, QUERY, TEXTS, dimensions=32)
    summary = opened.page.locator("#summary")
    expect(summary).to_contain_text("1,536 bytes in A and 128 in B")
    whole, cut = (
        vectors(opened.gateway, TEXTS, **more) @ vectors(opened.gateway, TEXTS, **more).T
        for more in ({}, {"dimensions": 32})
    )
    stated = re.search(r"([\d.]+) at most", summary.inner_text())
    assert stated
    assert float(stated[1]) >= round(float(abs(whole - cut).max()), 3)


def test_reranking_can_be_turned_on_and_off(opened: Tab, reranker: FakeReranker) -> None:
    opened.page.get_by_role("button", name="Does reranking change the order?").click()
    opened.rank(QUERY, TEXTS)
    reply = opened.gateway.post("/v1/rerank", model="test/reranker", query=QUERY, documents=TEXTS)
    order = [each["index"] for each in reply.json()["results"]]
    assert opened.order() == order != expected(opened.gateway, QUERY, TEXTS)
    scored = len(reranker.scored)
    opened.choose("b", rerank="")
    opened.rank()
    assert opened.order() == expected(opened.gateway, QUERY, TEXTS)
    expect(opened.page.locator("#summary")).to_contain_text("0 of 7 texts change")
    assert len(reranker.scored) == scored


@contextmanager
def _qwen(home: Path, server: FakeServer) -> Iterator[Running]:
    variables = {"EMBERD_BASE_URL": server.url, "EMBERD_MODEL": QWEN}
    with serving(home, environment=variables) as running:
        yield running


def test_tasks_reach_the_server_in_the_form_of_the_model(
    context: BrowserContext, tmp_path: Path
) -> None:
    """Qwen3-Embedding takes a task in words; one for both roles goes before the documents too."""
    with (
        FakeServer(model=QWEN, dimensions=1024) as server,
        _qwen(tmp_path / "h", server) as running,
    ):
        tab = Tab(context.new_page(), running)
        tab.open()
        expect(tab.page.locator("#app")).to_be_visible()

        def sent(**setting: str) -> list[str]:
            tab.page.get_by_label("compare with setting B").uncheck()
            tab.choose("a", **setting)
            tab.rank("my query", ["my text"])
            reads = tab.page.locator("#a-reads").inner_text()
            texts = [text for request in server.embedded for text in request]
            assert reads in texts
            return texts[-2:]

        assert sorted(sent(prompt="default"))[1] == "my text"
        assert f"Instruct: {TASKS['code']}\nQuery:my query" in sent(prompt="task:code")
        own = "Find the $& and $1 of {it"
        assert f"Instruct: {own}\nQuery:my query" in sent(prompt="own", own=own)
        both = "Instruct: Retrieve semantically similar text\nQuery:my "
        assert sorted(sent(prompt="task:similarity")) == [f"{both}query", f"{both}text"]
        assert "my query" in sent(prompt="document")


def test_a_text_with_markup_stays_text(opened: Tab) -> None:
    markup = "<img src=x onerror='window.wrong = 1'><script>window.wrong = 1</script><b>bold</b>"
    opened.choose("b", prompt="own", own=f"{markup} {{text}}")
    opened.rank(markup, [markup, "plain & simple", "<svg onload=wrong=1>"])
    texts = [row["Text"].partition("\n")[2].strip() for row in opened.rows()]
    assert sorted(texts) == sorted([markup, "plain & simple", "<svg onload=wrong=1>"])
    expect(opened.page.locator("#earlier tbody tr").first).to_contain_text(markup)
    opened.page.locator("#heat [role=gridcell]").first.focus()
    expect(opened.page.locator("#readout")).to_contain_text(markup)
    assert opened.page.locator("#results img, #results b, #results svg").count() == 0
    assert opened.page.evaluate("window.wrong") is None


def test_an_error_of_the_gateway_is_shown_as_text(opened: Tab) -> None:
    opened.choose("b", prompt="own", own="<b>Find</b> the law")
    opened.page.get_by_role("button", name="Rank", exact=True).click()
    error = opened.page.locator("#error")
    expect(error).to_contain_text("<b>Find</b> the law")
    assert error.locator("b").count() == 0
    opened.errors[:] = [each for each in opened.errors if "400" not in each]


def test_the_browser_itself_forbids_markup_and_requests_elsewhere(
    opened: Tab, reranker: FakeReranker
) -> None:
    page = opened.page
    failed = "() => new Promise((done) => { try { %s; done('made') } catch { done('refused') } })"
    assert page.evaluate(failed % "document.body.innerHTML = '<i>'") == "refused"
    before = len(reranker.requests)
    asked = f"fetch('{reranker.url}/health').then(() => 'answered', () => 'refused')"
    assert page.evaluate(asked) == "refused"
    assert len(reranker.requests) == before
    opened.requests[:] = [each for each in opened.requests if reranker.url not in each.url]
    opened.errors.clear()


class _Other(http.server.BaseHTTPRequestHandler):
    """Another site on this machine, which shows the page in a frame and asks the gateway."""

    html = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(self.html)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def test_another_site_can_neither_show_the_page_nor_ask_the_gateway(
    context: BrowserContext, gateway: Running
) -> None:
    html = f"<!doctype html><iframe src='{gateway.url}/'></iframe>".encode()
    handler = type("Handler", (_Other,), {"html": html})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            page = context.new_page()
            replies: list[int] = []
            page.on("response", lambda reply: replies.append(reply.status))
            page.goto(f"http://127.0.0.1:{server.server_port}/", wait_until="load")
            assert [frame.locator("#key-form").count() for frame in page.frames] == [0, 0]
            assert 403 in replies
            before = gateway.metrics()
            for body in ("", ", method: 'POST', body: '{}'"):
                assert (
                    page.evaluate(
                        f"fetch('{gateway.url}/servers', {{headers: {{authorization: "
                        f"'Bearer {gateway.key}'}}{body}}}).then(() => 'read', () => 'refused')"
                    )
                    == "refused"
                )
            after = gateway.metrics()
            answered = {name for name in after if name.startswith("emberd_gateway_requests_total{")}
            assert answered
            assert [name for name in answered if after[name] != before[name]] == []
            refused = 'emberd_gateway_refused_total{reason="page"}'
            assert after[refused] == before[refused] + 2
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_texts_can_be_read_in_light_and_dark(
    browser: Browser, gateway: Running, scheme: Any
) -> None:
    context = browser.new_context(color_scheme=scheme)
    context.set_default_timeout(TIMEOUT_MS)
    tab = Tab(context.new_page(), gateway)
    tab.open()
    opened = tab.page.locator("#app")
    expect(opened).to_be_visible()
    tab.choose("b", prompt="own", own=OWN)
    tab.rank(QUERY, TEXTS)
    found = tab.page.evaluate(CONTRASTS)
    background = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    context.close()
    assert len(found) > 100
    assert [each for each in found if each[0] < 4.5] == []
    channels = [int(each) for each in re.findall(r"\d+", background)[:3]]
    assert (sum(channels) / 3 < 60) is (scheme == "dark")


def test_it_is_usable_by_keyboard_only(tab: Tab) -> None:
    page, keys = tab.page, tab.page.keyboard
    page.goto(tab.gateway.url)
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    keys.type(tab.gateway.key)
    keys.press("Enter")
    expect(page.locator("#servers-title")).to_be_focused()
    order = []
    for _ in range(30):
        keys.press("Tab")
        order.append(_focused(page))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        if order[-1] == "rank":
            break
    names = ["example", "query", "texts", "a-model", "a-prompt", "b-model", "b-prompt", "rank"]
    assert [each for each in order if each in names] == names
    keys.press("Enter")
    tab.finished()
    for _ in range(30):
        keys.press("Tab")
        if page.evaluate("document.activeElement.role") == "gridcell":
            break
    keys.press("ArrowRight")
    keys.press("ArrowDown")
    keys.press("ArrowDown")
    keys.press("ArrowRight")
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    value = re.fullmatch(r"text 2 and text 2: ([\d.]+)", label)
    assert value
    assert float(value[1]) == pytest.approx(1, abs=2e-3)
    expect(page.locator("#readout")).to_contain_text(label)
    keys.press("Home")
    keys.press("Shift+Tab")
    keys.press("Tab")
    assert _focused(page, "aria-label").startswith("text 2 and query")


def _focused(page: Page, attribute: str = "id") -> str:
    return str(page.evaluate(f"document.activeElement.getAttribute('{attribute}')"))


def test_every_control_has_a_name_and_results_are_announced(opened: Tab) -> None:
    opened.rank(QUERY, TEXTS)
    for control in opened.page.locator("input, select, textarea, button").all():
        if control.is_visible():
            name = control.evaluate(
                "it => it.ariaLabel || it.labels?.[0]?.innerText || it.innerText"
            )
            assert name.strip(), control.evaluate("control => control.outerHTML")
    live = opened.page.locator("[aria-live=polite]")
    expect(live).to_contain_text("texts change their rank")
    expect(opened.page.locator("#status")).to_have_attribute("role", "status")


def test_the_heat_map_shows_the_similarities_as_numbers(opened: Tab) -> None:
    opened.rank(QUERY, TEXTS)
    opened.page.get_by_label("Vectors of").select_option("setting A")
    whole = [*vectors(opened.gateway, [QUERY], input_type="query"), *vectors(opened.gateway, TEXTS)]
    cells = opened.page.locator("#heat [role=gridcell]")
    expect(cells).to_have_count(len(whole) ** 2)
    for at in (0, 3, len(whole) + 2):
        value = float(whole[at // len(whole)] @ whole[at % len(whole)])
        assert float(cells.nth(at).inner_text()) == pytest.approx(value, abs=0.0051)
        cells.nth(at).hover()
        stated = opened.page.locator("#readout strong").inner_text()
        assert float(stated.rpartition(" ")[2]) == pytest.approx(value, abs=0.0006)


def test_it_fits_a_phone(browser: Browser, gateway: Running) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True)
    context.set_default_timeout(TIMEOUT_MS)
    tab = Tab(context.new_page(), gateway)
    tab.open()
    tab.rank(QUERY, [*TEXTS, "x" * 300])
    width = tab.page.evaluate("document.documentElement.scrollWidth")
    expect(tab.page.locator("#ranking tbody tr").first).to_be_visible()
    context.close()
    assert width <= 360


def test_what_is_shown_belongs_together_while_other_texts_are_asked_for(opened: Tab) -> None:
    opened.rank(QUERY, TEXTS)
    summary, rows = opened.page.locator("#summary").inner_text(), opened.rows()
    # A ranking that is never answered, of as many other texts for another query.
    opened.page.route("**/v1/embeddings", lambda route: None)
    opened.page.get_by_label("Query", exact=True).fill("another query")
    opened.page.get_by_label("Texts", exact=True).fill(
        "\n".join(f"other {number}" for number in range(len(TEXTS)))
    )
    opened.page.get_by_role("button", name="Rank", exact=True).click()
    expect(opened.page.get_by_role("button", name="Stop")).to_be_visible()
    for _ in range(2):
        box = opened.page.locator("#ranking tbody tr input").first
        box.click()
        expect(opened.page.locator("#summary")).not_to_have_text(summary)
        box.click()
        assert opened.page.locator("#summary").inner_text() == summary
        assert opened.rows() == rows
        opened.page.locator("#heat [role=gridcell]").nth(1).hover()
        expect(opened.page.locator("#readout")).to_contain_text(QUERY)
        expect(opened.page.locator("#readout")).to_contain_text(TEXTS[0])
        if opened.page.get_by_role("button", name="Stop").is_visible():
            opened.page.get_by_role("button", name="Stop").click()
            expect(opened.page.locator("#status")).to_have_text("Stopped.")


def test_a_reply_for_a_forgotten_key_changes_nothing(opened: Tab) -> None:
    held: list[Any] = []
    opened.page.route("**/servers", lambda route: held.append(route))  # noqa: PLW0108

    def asked(times: int) -> Any:
        for _ in range(200):
            if len(held) >= times:
                break
            opened.page.wait_for_timeout(100)
        return held[times - 1]

    late = asked(1)
    opened.page.get_by_role("button", name="Forget the key").click()
    with opened.page.expect_response("**/servers"):
        late.continue_()
    # The next key is not accepted because of what the first one was answered.
    opened.page.get_by_label("Key", exact=True).fill("wrong")
    opened.page.get_by_role("button", name="Open").click()
    asked(2).abort()
    expect(opened.page.locator("#key-error")).to_contain_text("does not answer")
    expect(opened.page.locator("#app")).to_be_hidden()
    assert opened.page.evaluate("sessionStorage.length") == 0
    opened.errors.clear()


def test_many_texts_are_ranked_and_too_many_are_refused(opened: Tab) -> None:
    texts = [f"number {number}" for number in range(60)]
    opened.rank("number 7", texts)
    assert len(opened.rows()) == 60
    expect(opened.page.locator("#heat [role=gridcell]")).to_have_count(41 * 41)
    expect(opened.page.locator("#heat-scale")).to_contain_text("the first 40 texts")
    opened.page.get_by_label("Texts", exact=True).fill("\n".join(map(str, range(501))))
    opened.page.get_by_role("button", name="Rank", exact=True).click()
    expect(opened.page.locator("#error")).to_contain_text("501")


def test_paragraphs_keep_their_lines(opened: Tab) -> None:
    opened.page.get_by_label("a paragraph each").check()
    opened.page.get_by_label("Texts", exact=True).fill("one\n  two\n\n\n \nthree\r\n\r\nfour\n")
    expect(opened.page.locator("#count")).to_have_text("3 texts")
    with opened.page.expect_request("**/v1/embeddings") as asked:
        opened.rank("one")
    requests = [each for each in opened.requests if each.url.endswith("/v1/embeddings")]
    assert asked.value in requests
    assert ["one\n  two", "three", "four"] in [
        (each.post_data_json or {})["input"] for each in requests
    ]


def test_a_gateway_that_ends_is_reported_and_found_again(
    context: BrowserContext, tmp_path: Path
) -> None:
    with FakeServer(model=QWEN, dimensions=1024) as server:
        with _qwen(tmp_path / "h", server) as running:
            tab = Tab(context.new_page(), running)
            tab.open()
            expect(tab.page.locator("#app")).to_be_visible()
            port = int(running.url.rpartition(":")[2])
        expect(tab.page.locator("#connection")).to_contain_text("does not answer")
        variables = {"EMBERD_BASE_URL": server.url, "EMBERD_MODEL": QWEN}
        with serving(tmp_path / "h", environment=variables, port=port):
            expect(tab.page.locator("#connection")).to_have_text("")
            tab.page.close()
