"""The text tiny-lm learns from: this repository's documents and docstrings, as prose and chat."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SKIPPED = {"node_modules", "__pycache__", "build", "dist"}
ANSWER_BYTES = 360
QUESTIONS = ("What is {}?", "What is a {}?", "What is the {}?", "Tell me about {}.", "{}?")
CODE_QUESTION = "What does {} do?"


def texts(repository: Path) -> list[str]:
    """Every text, in an order that does not depend on the machine."""
    found: list[str] = []
    for path in files(repository, "*.md"):
        found.extend(from_markdown(path.read_text(errors="ignore")))
    for path in files(repository, "*.py"):
        found.extend(from_python(path.read_text(errors="ignore")))
    return found


def files(repository: Path, pattern: str) -> Iterator[Path]:
    for path in sorted(repository.rglob(pattern)):
        inside = path.relative_to(repository).parts
        if not any(part.startswith(".") or part in SKIPPED for part in inside) and path.is_file():
            yield path


def from_markdown(text: str) -> Iterator[str]:
    """Each section as prose, and as a question about its heading with the section as answer."""
    for section in re.split(r"^#+ ", text, flags=re.MULTILINE):
        heading, _, body = section.partition("\n")
        body = re.sub(r"^```.*?^```", "", body, flags=re.MULTILINE | re.DOTALL).strip()
        if not body:
            continue
        yield f"{heading}\n{body}"
        said = prose(body)
        topic = prose(heading).strip().rstrip("?.")
        if said and topic:
            yield from (chat(template.format(topic), said) for template in QUESTIONS)
        yield from points(body)


def prose(markdown: str) -> str:
    """Paragraphs without tables, links' addresses and emphasis."""
    plain = re.sub(r"^\s*\|.*$", "", markdown, flags=re.MULTILINE)
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain)
    return re.sub(r"[*`]+", "", plain).strip()


def points(body: str) -> Iterator[str]:
    """`**Term.** text` and `| term | text |`, as a question about the term."""
    for term, said in re.findall(r"\*\*([^*\n]{2,40})\*\*[ :]+([^\n]{20,})", body):
        yield chat(f"What is {term.rstrip('.:').lower()}?", prose(said))
    for term, said in re.findall(r"^\| `?([^|`]{2,30})`? \| ([^|]{20,}) \|", body, re.MULTILINE):
        yield chat(f"What is {term}?", prose(said))
        yield chat(f"What is the {term}?", prose(said))


def from_python(source: str) -> Iterator[str]:
    """Docstrings: what a name does, by the name's own account."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        said = ast.get_docstring(node)
        if not said:
            continue
        name = getattr(node, "name", "")
        if name:
            yield chat(CODE_QUESTION.format(name.replace("_", " ")), said)
        else:
            yield said


def chat(question: str, answer: str) -> str:
    return f"User: {question}\nAssistant: {shortened(answer)}"


def shortened(answer: str) -> str:
    """Whole sentences, about ANSWER_BYTES of them, on one line."""
    flat = " ".join(answer.split())
    cut = flat[:ANSWER_BYTES]
    if len(cut) == len(flat):
        return flat
    end = max(cut.rfind(mark) for mark in (". ", "; ", ": ", ", "))
    return cut[: end + 1] if end > 0 else cut
