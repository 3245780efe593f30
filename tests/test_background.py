"""Kind of fault: Ctrl-C in the middle of a clean-up, which then does not run to its end."""

import signal
import sys
import threading
import time

import pytest

from retailray.background import beside
from retailray.interrupts import importing, interrupts_wait


def run_interrupted_at(step):
    """A block, interrupted so many instructions after its last line: whether there were as many, and its thread."""
    begun = threading.Event()
    threads, left = [], [step]

    def work(ended):
        threads.append(threading.current_thread())
        begun.set()
        while not ended(0.01):
            pass

    def trace(frame, event, argument):
        frame.f_trace_opcodes = True
        if event == "opcode":
            left[0] -= 1
            if left[0] < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    def interrupted():
        with beside(work, join_s=1):
            begun.wait(10)
            sys.settrace(trace)

    try:
        interrupted()
    except KeyboardInterrupt:
        return True, threads[0]
    finally:
        sys.settrace(None)
    return False, threads[0]


def test_the_thread_ends_at_whatever_instruction_an_interrupt_comes():
    step, more = 0, True
    while more:
        more, thread = run_interrupted_at(step)
        deadline = time.monotonic() + 10
        while thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        assert not thread.is_alive(), f"interrupted {step} instructions into the clean-up"
        step += 1
    assert step > 30


def test_the_thread_sees_the_end_once():
    seen = []
    with beside(lambda ended: seen.extend([ended(0.01), ended(10)])):
        time.sleep(0.1)
    assert seen == [False, True]


def test_what_is_raised_in_the_block_is_raised():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), beside(lambda ended: ended(10)):
        raise ZeroDivisionError
    assert threading.active_count() == before


def test_interrupts_that_wait_wait_for_the_outermost_block():
    """Kind of fault: an import within a protected start-up lets Ctrl-C through."""
    reached = []

    def start():
        with interrupts_wait():
            with importing():
                signal.raise_signal(signal.SIGINT)
            reached.append("after the inner block")

    with pytest.raises(KeyboardInterrupt):
        start()
    assert reached
