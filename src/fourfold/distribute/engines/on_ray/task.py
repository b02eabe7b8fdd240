"""What runs in a task of Ray. It travels by value: fourfold need not be there."""

from collections.abc import Callable
from typing import Any


def make_task(entry: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of a task, for `ray.remote`."""

    def fourfold_chunk(version: str, cargo: str, cargo_refs: list[Any], *work: Any) -> Any:
        """Run an order on another thread: Ray ends a task by a KeyboardInterrupt in this one."""
        import sys
        import threading

        import ray

        if not work:
            return entry(version, cargo, None)
        name, order, payload, program_refs = work
        answers: list[tuple[bool, Any]] = []
        should_stop = has_begun = False
        running = threading.Lock()  # held until there is an answer
        running.acquire()

        def run() -> None:
            try:
                reply = entry(version, cargo, lambda: ray.get(cargo_refs[0]), order, payload, lambda: ray.get(program_refs[0]))
                answers.append((True, reply))
            except BaseException as error:
                answers.append((False, error))
            finally:
                running.release()

        thread = threading.Thread(target=run, name="fourfold-order", daemon=True)
        while True:
            try:  # around all of it: the interrupt may come at any step
                if not has_begun:
                    has_begun = True
                    thread.start()
                while not answers:
                    site = sys.modules.get("fourfold.site") if should_stop else None
                    if site is not None:
                        should_stop = False
                        site.stop(name, "soft")
                    running.acquire(timeout=0.02)  # Ray's interrupt ends no wait for a lock: it is heard after this one
                is_reply, answer = answers[0]
                if is_reply:
                    return answer
                break
            except KeyboardInterrupt:
                should_stop = True
        raise answer

    return fourfold_chunk
