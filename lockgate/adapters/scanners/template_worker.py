"""Worker: renders one chat template with sample conversations, in the sandbox that servers use."""

from __future__ import annotations

import jinja2
from jinja2.exceptions import SecurityError

from lockgate.adapters.scanners.worker import begin, say
from lockgate.domain.scanning import templates

MEMORY = 1 << 30


def _render(template: jinja2.Template, sample: dict[str, object]) -> tuple[str, str]:
    size = 0
    try:
        for piece in template.generate(
            **sample,
            add_generation_prompt=True,
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            pad_token="<pad>",
            tools=None,
            documents=None,
        ):
            size += len(piece)
            if size > templates.MAX_OUTPUT:
                return "too-large", f"more than {templates.MAX_OUTPUT} characters"
    except SecurityError as error:
        return "security", str(error)[:200]
    except templates.TemplateRefusal as error:
        return "refused", str(error)[:200]
    except (MemoryError, RecursionError, OverflowError) as error:
        return "too-large", type(error).__name__
    except Exception as error:  # a template may raise anything; which one is the answer
        return "error", f"{type(error).__name__}: {error}"[:200]
    return "rendered", str(size)


def main() -> None:
    job = begin(MEMORY, cpu_seconds=None)
    try:
        template = templates.sandbox().from_string(job["template"])
    except (jinja2.TemplateError, RecursionError, MemoryError, OverflowError) as error:
        say("sample", outcome="uncompilable", detail=f"{type(error).__name__}: {error}"[:200])
    else:
        for sample in templates.SAMPLES:
            outcome, detail = _render(template, sample)
            say("sample", outcome=outcome, detail=detail)
    say("finished")


if __name__ == "__main__":
    main()
