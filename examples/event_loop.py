"""asyncio: pieces by `async for`, whole answers by `await`; the loop goes on meanwhile."""

import asyncio
import sys

import polybit

engine = polybit.load(sys.argv[1])


async def tell(prompt: str) -> None:
    async for piece in engine.stream(prompt, max_tokens=12):
        print(f"{prompt} ... {piece!r}")


async def main() -> None:
    answers = engine.generate_async(["One, two,", "A, B,"], max_tokens=12)
    *_, (first, second) = await asyncio.gather(tell("Red"), tell("Green"), answers)
    print(first.text, second.text)


asyncio.run(main())
