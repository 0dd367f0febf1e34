"""A page in a browser without a screen: `python -m tests.compression.browser PAGE WIDTH` prints what it made of it as JSON.

Chromium by Qt's WebEngine (pip install PySide6). In a process of its own, as Qt and OpenCV bring libraries of the same names.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = "--no-sandbox --disable-gpu"
HEIGHT, PATIENCE = 900, 60_000  # pixels, milliseconds
ASKED = """JSON.stringify({
  title: document.title, sections: [...document.querySelectorAll('h2')].map(e => e.textContent),
  cells: document.querySelectorAll('td').length, charts: document.querySelectorAll('svg').length,
  images: [...document.images].map(e => [e.complete, e.naturalWidth, e.getBoundingClientRect().width]),
  outside: [...document.querySelectorAll('svg')].flatMap(e => [...e.querySelectorAll('text')].filter(t => {
    const [outer, inner] = [e.getBoundingClientRect(), t.getBoundingClientRect()];
    return inner.left < outer.left || inner.right > outer.right || inner.top < outer.top || inner.bottom > outer.bottom; }))
    .map(t => t.textContent),
  wanted: document.documentElement.scrollWidth, width: window.innerWidth })"""


def rendered(page: Path, width: int) -> dict[str, Any]:
    """What the browser says of the page in a window of so many pixels, `requests`: addresses that it asked for besides,
    `complaints`: what it wrote to its console, `pdf`: how many bytes it prints as."""
    from PySide6.QtCore import QTimer, QUrl
    from PySide6.QtWebEngineCore import QWebEnginePage, QWebEngineUrlRequestInterceptor
    from PySide6.QtWebEngineWidgets import QWebEngineView
    from PySide6.QtWidgets import QApplication

    found: dict[str, Any] = {"requests": [], "complaints": []}

    class Watched(QWebEnginePage):
        def javaScriptConsoleMessage(self, level: object, message: str, line: int, source: str) -> None:
            found["complaints"].append(message)

    class Listener(QWebEngineUrlRequestInterceptor):
        def interceptRequest(self, info: Any) -> None:
            found["requests"].append(info.requestUrl().toString()[:80])

    application = QApplication([])
    view, listener = QWebEngineView(), Listener()
    view.setPage(Watched(view))
    view.page().setUrlRequestInterceptor(listener)
    view.resize(width, HEIGHT)
    view.show()

    def printed(data: Any) -> None:
        found["pdf"] = len(data)
        application.quit()

    def answered(values: str) -> None:
        found.update(json.loads(values))
        view.page().printToPdf(printed)

    view.loadFinished.connect(lambda _: view.page().runJavaScript(ASKED, 0, answered))
    view.load(QUrl.fromLocalFile(str(page.resolve())))
    QTimer.singleShot(PATIENCE, application.quit)
    application.exec()
    return found


if __name__ == "__main__":
    print(json.dumps(rendered(Path(sys.argv[1]), int(sys.argv[2]))), flush=True)
    os._exit(0)  # Qt's own end waits for helpers of the browser
