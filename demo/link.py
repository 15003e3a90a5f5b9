"""A link that restores a state: the settings of a picture in the page's address."""

from __future__ import annotations

from collections.abc import Mapping

from demo.request import GenerationRequest, RequestError

LABEL = "Copy a link to these settings"
AGAIN = f"() => new Promise(done => setTimeout(() => done('{LABEL}'), 4000))"  # so that the next press says something too
_INTO_ADDRESS = """
  const query = new URLSearchParams({prompt, steps, iterations: auto ? 'auto' : iterations, guidance});
  if (negative) query.set('negative', negative);
  if (!random) query.set('seed', seed);
  const link = `${location.origin}${location.pathname}?${query}`;
  history.replaceState(null, '', link);"""
# A phone that sleeps loses its connection, and Gradio then loads the page anew: what was asked for last stands in its address.
KEEP_IN_ADDRESS = "(prompt, negative, seed, steps, iterations, auto, guidance, random) => {" + _INTO_ADDRESS + "\n}"
# From the page's settings to an address; also put into the address bar, where no clipboard can be written.
COPY_LINK = "async (prompt, negative, seed, steps, iterations, auto, guidance) => {\n  const random = false;" + _INTO_ADDRESS + """
  try {
    await navigator.clipboard.writeText(link);
    return 'Link copied';
  } catch {
    return 'The link is in the address bar';
  }
}"""


def read_link(query: Mapping[str, str], otherwise: tuple[int, int | str, float]) -> GenerationRequest | None:
    """The request in a page's address, with steps, iterations and guidance `otherwise` where it says none; None when there is no prompt in it.

    Raises RequestError, or PromptError from `iris.text`.
    """
    if not query.get("prompt"):
        return None
    steps, depth, guidance = map(str, otherwise)
    iterations = query.get("iterations", depth)
    return GenerationRequest.parse(
        query["prompt"], query.get("negative", ""), _number("seed", query, "0"), _number("steps", query, steps),
        "auto" if iterations == "auto" else _number("iterations", query, depth), _number("guidance", query, guidance),
    )


def has_seed(query: Mapping[str, str]) -> bool:
    """Whether an address holds a seed. Without one its pictures were random, and stay so."""
    return "seed" in query


def _number(name: str, query: Mapping[str, str], otherwise: str) -> float:
    try:
        return float(query.get(name, otherwise)[:40])
    except ValueError:
        raise RequestError(f"The link's {name} is no number.") from None
