"""The examples that the stations' documents print, as they can be run against any base URL.

documents/*.md has them word for word. What is replaced: base URLs and placeholders, which a reader replaces
too; and the listed slips, where an example cannot work as it is printed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).with_name("documents")

BASE_URLS = re.compile(r"https://(?:openai\.pgpt\.cloud|api\.rcouyi\.com|aigptx\.top|api\.api4gpt\.com)")
KEYS = (
    "<替换成从APIGPT.CLOUD创建的OpenAI APP Key>",
    "<API_KEY>",
    "<APK_KEY>",
    "your API_KEY",
    "YOUR_API_KEY",
)
RECORDING = "/path/to/file/audio.mp3"
INTERFACES, IMAGES = "模型接口", "图像接口(Images)/"  # groups of a menu


class Slip(NamedTuple):
    printed: str
    instead: str
    why: str


SLIPS = {
    "rcouyi: chat, openai 0.28": (
        Slip(
            "openai.base_url", "openai.api_base", "openai 0.28 knows no base_url, and would ask OpenAI itself"
        ),
        Slip("= $API_KEY", "= '<API_KEY>'", "is no Python; the comment says to put the key there"),
        Slip('resp[0]["message"]', 'resp["choices"][0]["message"]', "an answer is an object with choices"),
        Slip('["content"]', '["content"])', "the bracket of print is not closed"),
    ),
    "rcouyi: chat, requests": (Slip("import json\n", "import json\nimport os\n", "os is not imported"),),
    "rcouyi: transcription, curl": (
        Slip("https://api.openai.com", "https://api.rcouyi.com", "names the vendor in place of the station"),
    ),
}
# Where an answer is printed with parts left out.
LEFT_OUT = re.compile(r"\s*\.{4} \(1536 floats total for ada-002\)|,(?=\s*\])")


class Example(NamedTuple):
    """`text` is a shell command or a Python program, `answer` what is printed below it ("": nothing)."""

    name: str
    language: str
    text: str
    answer: str

    def at(self, base_url: str, key: str, recording: Path) -> str:
        """As a reader pastes it."""
        text = self.text
        for slip in SLIPS.get(self.name, ()):
            assert text.count(slip.printed) == 1, f"the document does not say {slip.printed}"
            text = text.replace(slip.printed, slip.instead)
        for placeholder in KEYS:
            text = text.replace(placeholder, key)
        return BASE_URLS.sub(base_url, text).replace(RECORDING, str(recording))

    @property
    def sent(self) -> str:
        """The body that a curl command sends."""
        found = re.search(r"-d '(.*)'", self.text, re.DOTALL)
        return found[1] if found else ""


def menu(station: str) -> list[str]:
    """The entries of a document's menu that are interfaces, as `group/entry`."""
    found, above = [], []
    lines = (FOLDER / "menus" / f"{station}.md").read_text().splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        depth, name = line.index("-") // 2, line.partition("- ")[2]
        above[depth:] = [name]
        is_leaf = following.find("-") <= line.index("-")
        if is_leaf and above[0] == INTERFACES:
            found.append("/".join(above[1:]).removeprefix(IMAGES))
    return found


def examples() -> dict[str, Example]:
    """All of them by `station: name`, in the order of the documents."""
    found = {}
    for file in sorted(FOLDER.glob("*.md")):
        for section in file.read_text().split("\n## ")[1:]:
            name = f"{file.stem}: {section.partition(chr(10))[0]}"
            (language, text), *printed = re.findall(r"```(\w+)\n(.*?)\n```", section, re.DOTALL)
            answer = printed[0][1] if printed else ""
            found[name] = Example(name, language, text, LEFT_OUT.sub("", answer))
    return found
