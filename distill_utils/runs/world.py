"""The processes of one job, under torchrun or alone: who owns what, and how they agree to the last bit.

Work is divided into numbered parts, part n to rank n mod size; its owner then broadcasts the part. Every rank
adds the parts up in the same order as one process would, so that the number of processes changes nothing in
the result. A process alone needs no torch for that, and does not import it.
"""

from distill_utils.runs.errors import Diverged, UserError


class World:
    """This process among `size`; rank 0 alone writes files and prints. Alone, it agrees with itself."""

    rank, size = 0, 1

    @property
    def first(self):
        return self.rank == 0

    def owns(self, part):
        return part % self.size == self.rank

    def broadcast(self, tensor, part):
        """Overwrites `tensor` in place, on every rank, by that of the owner of `part`."""

    def add_up(self, tensor):
        """The sum of all ranks' tensors, on each: exact for integers, and where all but one of them are 0."""
        return tensor

    def share(self, value, part, device):
        """The JSON value that the owner of `part` passes, on every rank; the others' is not looked at."""
        return value

    def map(self, functions, device):
        """The JSON values of functions(), in order, on every rank; function n is called by the owner of part
        n alone.

        A UserError that one of them raises is raised on every rank.
        """
        done = {}
        for n, function in enumerate(functions):
            if self.owns(n):
                try:
                    done[n] = {"value": function()}
                except UserError as error:
                    done[n] = {"error": str(error), "diverged": isinstance(error, Diverged)}
                    break
        values = []
        for n in range(len(functions)):
            result = self.share(done.get(n), n, device)
            if "error" in result:  # the first one; what its process left undone comes after it
                raise (Diverged if result["diverged"] else UserError)(result["error"])
            values.append(result["value"])
        return values

    def barrier(self):
        """Wait until every rank is here."""


ALONE = World()
