// Which tasks attention_amx.cpp is given, and in which order.

#include <algorithm>
#include <atomic>
#include <new>

#include "attention.h"
#include "parallel.h"

namespace lowbit::amx {
namespace {

// A task converts its keys and values for itself: so many blocks make that cheap.
constexpr int64_t blocks_per_task = 8;
// Numbers of one head alone are short pieces far apart, which caches are slow to find; more heads
// make longer ones, as long as there are tasks enough for all threads.
constexpr int64_t most_heads_per_task = 4, tasks_enough = 16;
constexpr int64_t ns_per_thread = 8000;  // less than this is done sooner by one thread alone

int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Handed out in order to whichever thread asks next.
struct Tasks {
  const Attention& op;
  const int64_t blocks =  // of a key head
      op.heads / op.key_heads * divided(op.queries, AttentionTask::block_queries);
  const int64_t block_parts = divided(blocks, blocks_per_task);
  const int64_t heads_per_task = std::clamp<int64_t>(
      op.batch * op.key_heads * block_parts / tasks_enough, 1, most_heads_per_task);
  const int64_t head_parts = divided(op.key_heads, heads_per_task);
  const int64_t count = op.batch * head_parts * block_parts;
  std::atomic<int64_t> next = 0;
  std::atomic<bool> out_of_memory = false;

  void take_until_done() {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      const int64_t first_block = task % block_parts * blocks_per_task;
      const int64_t first_head = task / block_parts % head_parts * heads_per_task;
      attend(op, {.batch = task / block_parts / head_parts,
                  .first_key_head = first_head,
                  .last_key_head = std::min(op.key_heads, first_head + heads_per_task),
                  .first_block = first_block,
                  .last_block = std::min(blocks, first_block + blocks_per_task)});
    }
  }

  // Roughly, on one core.
  int64_t ns() const {
    const int64_t scores = op.batch * op.heads * op.queries * op.keys;
    const int64_t converted = op.batch * (op.heads * op.queries + 2 * op.key_heads * op.keys);
    return scores / 4 + (scores / 512 + converted / 8) * (op.size + op.value_size);
  }
};

}  // namespace

void attention(const Attention& op) {
  const int64_t results = op.batch * op.heads * op.queries * op.value_size;
  if (results == 0 || op.keys == 0) {
    std::fill_n(static_cast<float*>(op.y), results, 0.0f);
    return;
  }
  Tasks tasks{.op = op};
  parallel_for(0, tasks.ns() + 1, ns_per_thread, [&](int64_t, int64_t) {
    try {
      tasks.take_until_done();
    } catch (const std::bad_alloc&) {  // from task_scratch; no exception may leave this function
      tasks.out_of_memory = true;
    }
  });
  if (tasks.out_of_memory) throw std::bad_alloc();
}

}  // namespace lowbit::amx
