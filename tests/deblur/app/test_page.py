"""The page in a real browser: display, keyboard, mouse and touch, accessibility, and errors of the service."""

import base64
import io
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect, sync_playwright

from deblur.data.sample_set import blurred_photographs
from deblur.inference.bulk import restore_file
from deblur.models.trained import load_model
from tests.datasets import picture
from tests.deblur.data.test_formats import UPRIGHT, iphone_heic
from tests.service import running_service

expect.set_options(timeout=30_000)  # the service shares two cores with other tests
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}
LIMITS = {"bytes": 33554432, "pixels": 64000000, "types": list(FORMATS)}
DESK, PHONE = ViewportSize(width=1280, height=800), ViewportSize(width=360, height=640)


@pytest.fixture(scope="module")  # a session's would run Playwright's event loop under the tests of other modules
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if not program:
        pytest.fail("There is no chromium on the PATH, which the tests of the page drive: apt-get install chromium")
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=program, args=ARGUMENTS) as found:
        yield found


@pytest.fixture
def page(browser: Browser, service: str) -> Iterator[Page]:
    """The opened page. In the end there must be no request to another host, no CSP violation and no error."""
    with browser.new_context(viewport=DESK, has_touch=True, reduced_motion="reduce") as context:
        found = context.new_page()
        foreign, complaints = [], []
        found.on("request", lambda request: foreign.append(request.url) if is_foreign(request.url, service) else None)
        found.on("pageerror", lambda error: complaints.append(str(error)))
        found.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
        found.goto(service)
        expect(found.get_by_text("up to")).to_be_visible()
        yield found
        assert not foreign
        # The browser itself logs every answer of 4xx and 5xx, and every cut connection.
        assert not [text for text in complaints if not text.startswith("Failed to load resource")]


def is_foreign(url: str, service: str) -> bool:
    return not url.startswith((service, f"blob:{service}", "data:"))


def encoded(pixels: np.ndarray, kind: str = "image/png") -> bytes:
    data = io.BytesIO()
    PIL.Image.fromarray(pixels).save(data, FORMATS[kind])
    return data.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


PICTURE = encoded(picture(0, 60, 80))
WHITE = encoded(np.full((600, 800, 3), 255, np.uint8))
BLACK = encoded(np.zeros((600, 800, 3), np.uint8))


def choose(page: Page, data: bytes = PICTURE, name: str = "street.png", kind: str = "image/png") -> None:
    page.locator("input[type=file]").set_input_files({"name": name, "mimeType": kind, "buffer": data})


@pytest.fixture
def silence() -> Iterator[Callable[[Route], None]]:
    """Sends a request to a server that reads it and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield lambda route: route.continue_(url=f"http://127.0.0.1:{listener.getsockname()[1]}/restore")


def expect_result(page: Page) -> None:
    expect(page.get_by_role("status")).to_contain_text("Restored")
    expect(page.get_by_role("link", name="Download")).to_be_visible()


def expect_trouble(page: Page, sentence: str) -> None:
    expect(page.get_by_role("alert")).to_contain_text(sentence)


def answer(page: Page, *answers: Callable[[Route], None]) -> list[Route]:
    """POST /restore gets these responses in turn, then those of the service; returns the requests."""
    asked: list[Route] = []

    def handle(route: Route) -> None:
        asked.append(route)
        (answers[len(asked) - 1] if len(asked) <= len(answers) else Route.continue_)(route)

    page.route("**/restore", handle)
    return asked


def wait_for(page: Page, asked: list[Route], count: int) -> None:
    """Until that many requests have arrived, which is a little later than the page shows the upload."""
    while len(asked) < count:
        page.wait_for_timeout(10)


def compare_black_to_white(page: Page) -> None:
    """The result of a white picture that is restored to a black one."""
    answer(page, lambda route: route.fulfill(body=BLACK, content_type="image/png"))
    choose(page, WHITE)
    expect_result(page)


def seen_share(page: Page) -> float:
    """How much of the picture's visible width shows the restored, black one, in percent; away from handle and tags."""
    shown = page.screenshot(clip=page.locator("#stage").bounding_box())
    row = decoded(shown)[-40]
    return 100 * float((row < 128).all(axis=-1).mean())


def test_chosen_picture_is_restored_and_the_result_is_focused(page: Page) -> None:
    choose(page)
    expect_result(page)
    slider = page.get_by_role("slider")
    expect(slider).to_be_focused()
    expect(slider).to_have_attribute("aria-valuetext", "50 % restored")
    for name in ("Blurred picture", "Restored picture"):
        image = page.get_by_role("img", name=name)
        assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [80, 60]
    assert page.get_by_role("status").evaluate("status => status.ariaLive ?? 'polite'") == "polite"


def test_page_requests_only_itself_the_limits_and_the_restored_picture(browser: Browser, service: str) -> None:
    with browser.new_page() as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(service)
        choose(page)
        expect_result(page)
    paths = {url.removeprefix(service) for url in asked if not url.startswith(("data:", "blob:"))}
    assert paths == {"/", "/page.css", "/page.js", "/limits", "/restore"}


@pytest.mark.parametrize("kind", ["image/heic", ""], ids=["by its type", "by its ending"])
def test_a_phones_heic_is_shown_upright_and_restored(page: Page, kind: str) -> None:
    """Chromium cannot show HEIC: the service decodes it."""
    choose(page, iphone_heic(), "IMG_0001.HEIC", kind)
    expect_result(page)
    height, width, _ = UPRIGHT.shape
    for name in ("blurred", "restored"):
        assert page.locator(f"#{name}").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [
            width,
            height,
        ]
    assert page.get_by_role("link", name="Download").get_attribute("download") == "IMG_0001-restored.jpg"


@pytest.mark.parametrize("wanted", [True, False])
def test_the_first_frame_of_an_animation_is_restored_if_the_user_wants_it(page: Page, wanted: bool) -> None:
    frames = [PIL.Image.fromarray(np.roll(UPRIGHT, shift, 0)) for shift in (0, 40)]
    data = io.BytesIO()
    frames[0].save(data, "GIF", save_all=True, append_images=frames[1:])
    page.once("dialog", lambda dialog: dialog.accept() if wanted else dialog.dismiss())
    choose(page, data.getvalue(), "cat.gif", "image/gif")
    if wanted:
        expect_result(page)
        assert page.get_by_role("link", name="Download").get_attribute("download") == "cat-restored.jpg"
    else:
        expect(page.get_by_role("alert")).to_have_text("cat.gif is animated: choose another picture.")


def test_keyboard_moves_the_line_and_the_clipping(page: Page) -> None:
    compare_black_to_white(page)
    assert seen_share(page) == pytest.approx(50, abs=1)
    for keys, share in (("ArrowUp " * 20, 70), ("ArrowRight " * 10, 60), ("Home", 0), ("End", 100)):
        for key in keys.split():
            page.keyboard.press(key)
        expect(page.get_by_role("slider")).to_have_attribute("aria-valuetext", f"{share} % restored")
        assert seen_share(page) == pytest.approx(share, abs=1)


def test_mouse_moves_the_line_and_the_clipping(page: Page) -> None:
    compare_black_to_white(page)
    box = page.locator("#stage").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, middle + 100, steps=4)
    assert seen_share(page) == pytest.approx(75, abs=1)
    page.mouse.move(box["x"] - 200, middle)
    page.mouse.up()
    expect(page.get_by_role("slider")).to_have_value("100")
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    expect(page.get_by_role("slider")).to_have_value("100")  # released, it follows no longer
    page.mouse.click(box["x"] + 0.9 * box["width"], middle)
    assert seen_share(page) == pytest.approx(10, abs=1)


def swipe(page: Page, start: tuple[float, float], by: tuple[float, float]) -> None:
    """A drag with one finger on a touch screen."""
    devtools = page.context.new_cdp_session(page)
    for nth in range(11):
        point = {"x": start[0] + by[0] * nth / 10, "y": start[1] + by[1] * nth / 10}
        kind = "touchMove" if nth else "touchStart"
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_touch_moves_the_line_horizontally_and_scrolls_vertically(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 500})
    compare_black_to_white(page)
    box = page.locator("#stage").bounding_box()
    start = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    swipe(page, start, (-box["width"] / 4, 0))
    assert seen_share(page) == pytest.approx(75, abs=1)
    swipe(page, start, (0, -120))
    expect(page.get_by_role("heading")).not_to_be_in_viewport()
    expect(page.get_by_role("slider")).to_have_attribute("aria-valuetext", "75 % restored")


def test_zoomed_picture_is_panned_and_the_line_clips_its_visible_part(page: Page) -> None:
    compare_black_to_white(page)
    stage, width = page.locator("#stage"), "() => document.getElementById('restored').getBoundingClientRect().width"
    fit = page.evaluate(width)
    for key, expected in (("+", 800), ("+", 1600), ("-", 800), ("0", fit), ("+", 800), ("+", 1600)):
        page.keyboard.press(key)
        assert page.evaluate(width) == pytest.approx(expected)
    page.get_by_role("button", name="400 %").click()
    assert page.evaluate(width) == pytest.approx(3200)
    expect(page.get_by_role("button", name="400 %")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="Fit")).to_have_attribute("aria-pressed", "false")

    assert seen_share(page) == pytest.approx(50, abs=1)
    left, box = stage.evaluate("stage => stage.scrollLeft"), stage.bounding_box()
    assert left == pytest.approx((3200 - box["width"]) / 2, abs=20), "what was in the middle still is"
    page.mouse.move(box["x"] + 300, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 100, box["y"] + 50, steps=4)
    page.mouse.up()
    assert stage.evaluate("stage => stage.scrollLeft") == pytest.approx(left + 200, abs=2)
    assert seen_share(page) == pytest.approx(50, abs=1)

    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    assert seen_share(page) == pytest.approx(20, abs=1)


HAND_OVER = """([kind, text]) => {
  const transfer = new DataTransfer();
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  if (text) transfer.items.add(new File([bytes], "street.png", { type: "image/png" }));
  const event = kind === "paste"
    ? new ClipboardEvent(kind, { clipboardData: transfer, bubbles: true, cancelable: true })
    : new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.querySelector("footer").dispatchEvent(event);
  return event.defaultPrevented;
}"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_picture_can_be_dropped_and_pasted_anywhere(page: Page, kind: str) -> None:
    assert page.evaluate(HAND_OVER, ["dragover", ""]), "else the browser does not allow the drop"
    page.evaluate(HAND_OVER, [kind, base64.b64encode(PICTURE).decode()])
    expect_result(page)
    assert page.get_by_role("img", name="Blurred picture").evaluate("image => image.naturalWidth") == 80


def test_dropping_something_else_than_a_file_is_an_error(page: Page) -> None:
    page.evaluate(HAND_OVER, ["drop", ""])
    expect_trouble(page, "not a file")


@pytest.mark.parametrize(("kind", "ending"), [("image/jpeg", "jpg"), ("image/png", "png"), ("image/webp", "webp")])
def test_download_equals_the_output_of_the_command(page: Page, service_model: Path, kind: str, ending: str) -> None:
    data = encoded(picture(1, 60, 80), kind)
    choose(page, data, "my.street.photo", kind)
    expect_result(page)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == f"my.street-restored.{ending}"
    cpu = torch.device("cpu")
    expected = decoded(restore_file(load_model(str(service_model), cpu), data, "street", f".{ending}", cpu))
    most = 1 if ending == "png" else 4  # a level more or less is more behind a lossy format
    assert np.abs(decoded(download.value.path().read_bytes()) - expected).max() <= most


def test_the_page_sharpens_a_photograph_with_the_embedded_model(browser: Browser, tmp_path: Path) -> None:
    (pair,) = blurred_photographs("test")
    with running_service(None, tmp_path / "log") as address, browser.new_page() as page:
        page.goto(address)
        choose(page, encoded(pair.blurred))
        expect_result(page)
        with page.expect_download() as download:
            page.get_by_role("link", name="Download").click()
        restored = decoded(download.value.path().read_bytes())
    sharp = pair.sharp.astype(int)
    before, after = (np.square(side - sharp).mean() for side in (pair.blurred.astype(int), restored))
    assert 10 * np.log10(before / after) > 0.5  # dB


@pytest.mark.parametrize(
    ("limits", "name", "kind", "sentence"),
    [
        ({}, "notes.txt", "text/plain", "notes.txt is not a JPEG, PNG or WebP picture"),
        ({}, "IMG_1.cr2", "image/x-canon-cr2", "IMG_1.cr2 is not a JPEG, PNG or WebP picture"),
        ({"bytes": 2**20}, "large.png", "image/png", "large.png has 1.1 MB, of at most 1:"),
        ({"pixels": 300_000}, "wide.png", "image/png", "wide.png has 0.5 megapixels, of at most 0.3:"),
        ({}, "torn.jpg", "image/jpeg", "torn.jpg cannot be read as a picture"),
    ],
)
def test_unsuitable_file_is_rejected_before_the_upload(
    page: Page, limits: dict[str, int], name: str, kind: str, sentence: str
) -> None:
    page.route("**/limits", lambda route: route.fulfill(json=LIMITS | limits))
    page.reload()
    asked = answer(page)
    data = {"large.png": WHITE + bytes(2**20), "torn.jpg": WHITE[:20]}.get(name, WHITE)
    choose(page, data, name, kind)
    expect_trouble(page, sentence)
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()
    expect(page.get_by_label("Choose a picture")).to_be_focused()
    assert not asked


@pytest.mark.parametrize(
    ("status", "kind", "body", "sentence", "again"),
    [
        (415, "text/plain", "The picture is a <b>GIF</b>; send another.", "The picture is a <b>GIF</b>;", False),
        (500, "text/plain; charset=utf-8", "The device failed; try later.", "The device failed; try later.", True),
        (502, "text/html", "<h1>Bad Gateway</h1>", "The service answered 502: try again later.", True),
    ],
)
def test_error_message_of_the_service_is_shown(
    page: Page, status: int, kind: str, body: str, sentence: str, again: bool
) -> None:
    answer(page, lambda route: route.fulfill(status=status, content_type=kind, body=body))
    choose(page)
    expect_trouble(page, sentence)
    expect(page.get_by_role("button", name="Try again")).to_be_visible(visible=again)


def busy(route: Route) -> None:
    route.fulfill(status=503, headers={"Retry-After": "30"}, content_type="text/plain", body="The queue is full.")


def test_busy_service_is_retried_after_retry_after(page: Page) -> None:
    page.clock.install()
    asked = answer(page, busy)
    choose(page)
    expect(page.get_by_text("Trying again in 30 s")).to_be_visible()
    page.clock.run_for(29_000)
    expect(page.get_by_text("Trying again in 1 s")).to_be_visible()
    assert len(asked) == 1
    page.clock.run_for(1_000)
    expect_result(page)
    assert len(asked) == 2


def test_retries_of_a_busy_service_end_and_can_be_repeated(page: Page) -> None:
    page.clock.install()
    asked = answer(page, *[busy] * 5)
    choose(page)
    for _ in range(4):
        expect(page.get_by_text("Trying again in 30 s")).to_be_visible()
        page.clock.run_for(30_000)
    expect_trouble(page, "The queue is full.")
    assert len(asked) == 5
    page.get_by_role("button", name="Try again").click()
    expect_result(page)


def test_lost_connection_is_an_error_and_the_same_picture_can_be_sent_again(page: Page) -> None:
    asked = answer(page, lambda route: route.abort())
    choose(page)
    expect_trouble(page, "The connection to the service broke.")
    again = page.get_by_role("button", name="Try again")
    expect(again).to_be_focused()
    again.press("Enter")
    expect_result(page)
    assert [route.request.post_data_buffer for route in asked] == [PICTURE, PICTURE]


def test_limits_are_fetched_again_after_a_failure(page: Page) -> None:
    page.route("**/limits", lambda route: route.abort(), times=2)
    page.reload()
    choose(page)
    expect_trouble(page, "The connection to the service broke.")
    page.get_by_role("button", name="Try again").click()
    expect_result(page)


def test_restoring_shows_seconds_and_no_percentage(page: Page, silence: Callable[[Route], None]) -> None:
    page.clock.install()
    answer(page, silence)
    choose(page)
    expect(page.get_by_role("status")).to_have_text("Restoring")
    page.clock.run_for(7_000)
    expect(page.get_by_text("Restoring 7 s")).to_be_visible()
    assert page.get_by_role("progressbar").get_attribute("value") is None


def test_upload_shows_its_progress(page: Page) -> None:
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 400_000}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", slow)
    page.evaluate("""() => {
      window.shown = [];
      const note = () => shown.push(document.querySelector(".status p").innerText);
      new MutationObserver(note).observe(document.querySelector(".status"), { childList: true, subtree: true });
    }""")
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    choose(page, encoded(noise))
    expect_result(page)
    percents = [int(found[1]) for text in page.evaluate("shown") if (found := re.match(r"Uploading (\d+) %", text))]
    assert percents == sorted(percents)
    assert {percent for percent in percents if 0 < percent < 100}


@pytest.mark.parametrize("during", ["the restoring", "the wait"])
def test_cancel_aborts_the_request_and_resets_the_page(
    page: Page, silence: Callable[[Route], None], during: str
) -> None:
    ended: list[str] = []
    page.on("requestfailed", lambda request: ended.append(request.failure))
    asked = answer(page, busy if during == "the wait" else silence)
    choose(page)
    expect(page.get_by_text("Trying again in" if during == "the wait" else "Restoring")).to_be_visible()
    page.get_by_role("button", name="Cancel").press("Enter")
    expect(page.get_by_role("status")).to_have_text("Cancelled.")
    expect(page.get_by_label("Choose a picture")).to_be_focused()
    expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    assert ended == ([] if during == "the wait" else ["net::ERR_ABORTED"])
    assert len(asked) == 1
    choose(page)
    expect_result(page)


def test_another_picture_replaces_the_current_one_and_revokes_its_urls(page: Page) -> None:
    asked = answer(page, Route.continue_, lambda route: None)
    choose(page)
    expect_result(page)
    old = page.locator("#viewer img").evaluate_all("images => images.map((image) => image.src)")
    choose(page, encoded(picture(1, 50, 70)), "unfinished.png")
    wait_for(page, asked, 2)
    choose(page, encoded(picture(2, 40, 30)), "last.png")
    expect_result(page)
    expect(page.get_by_text("last.png")).to_be_visible()
    assert page.get_by_role("img", name="Restored picture").evaluate("image => image.naturalWidth") == 30
    assert len(asked) == 3
    loads = "url => Object.assign(new Image(), { src: url }).decode().then(() => true, () => false)"
    assert [page.evaluate(loads, url) for url in old] == [False, False]
    assert page.evaluate(loads, page.locator("#restored").get_attribute("src"))


def in_every_state(page: Page) -> Iterator[str]:
    """The page in each state: empty, running, result, zoomed and error, with long names and messages."""
    name = "a-name-without-any-space-that-is-longer-than-a-phone-is-wide.png"
    asked = answer(page, lambda route: None)
    yield "empty"
    choose(page, WHITE, name)
    wait_for(page, asked, 1)
    yield "running"
    asked[0].continue_()
    expect_result(page)
    yield "result"
    page.get_by_role("button", name="400 %").click()
    yield "zoomed"
    choose(page, b"", name.replace("png", "txt"), "text/plain")
    expect_trouble(page, "is not a")
    yield "error"


def test_nothing_overflows_horizontally_on_a_phone(page: Page) -> None:
    page.set_viewport_size(PHONE)
    for state in in_every_state(page):
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"], state
        boxes = [found.bounding_box() for found in page.locator("button, .button, h1, p").all() if found.is_visible()]
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"] for box in boxes), state


CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (colour) => channels(colour).slice(0, 3)
    .map((value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, nth) => sum + value * [0.2126, 0.7152, 0.0722][nth], 0);
  const ground = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return channels(colour)[3] === 0 ? ground(element.parentElement) : colour;
  };
  const own = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  return [...document.body.querySelectorAll("*")].filter((each) => own(each) && each.checkVisibility()).map((each) => {
    const pair = [luminance(getComputedStyle(each).color), luminance(ground(each))].sort();
    return [(pair[1] + 0.05) / (pair[0] + 0.05), each.textContent];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_required_by_wcag(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    for state in in_every_state(page):
        found = page.evaluate(CONTRASTS)
        assert len(found) > 5
        assert [text for contrast, text in found if contrast < 4.5] == [], state


def test_accessibility_tree_has_landmarks_one_heading_and_named_controls(page: Page) -> None:
    devtools = page.context.new_cdp_session(page)
    for state in in_every_state(page):
        nodes = devtools.send("Accessibility.getFullAXTree")["nodes"]
        named = [node for node in nodes if not node["ignored"] and "name" in node]
        found = [(node["role"]["value"], node["name"]["value"]) for node in named]
        roles = [role for role, _ in found]
        assert {"banner", "main", "contentinfo", "status"} <= set(roles), state
        assert roles.count("heading") == 1, state
        controls = {"button", "link", "slider", "progressbar", "image", "group", "region"}
        assert [role for role, name in found if role in controls and not name] == [], state


def test_page_without_javascript_shows_the_terminal_command(browser: Browser, service: str) -> None:
    with browser.new_page(java_script_enabled=False) as page:
        page.goto(service)
        sentence = page.locator("noscript p")
        expect(sentence).to_be_visible()
        assert "curl --data-binary @photo.jpg" in sentence.inner_text()
        expect(page.get_by_text("Choose a picture")).to_be_hidden()
        expect(page.get_by_text("Pictures are not stored.")).to_be_visible()
