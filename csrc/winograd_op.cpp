#include "winograd_op.h"

#include <algorithm>
#include <stdexcept>

#include "normal_op.h"
#include "parallel.h"
#include "scratch.h"

namespace edm {
namespace {

// Transformed inputs of a block of tiles: they are read in order, once for each panel, and so may lie in the third cache;
// the more tiles, the less it costs to transform the weights for each block.
constexpr std::int64_t kBlockFloats = 3072 * 1024 / 4;
constexpr std::int64_t kLeastTiles = 12;
static_assert(kLeastTiles <= most_tiles(36), "a block's products must fit products_step");
// Products a thread must have to be worth waking: some 12 us of work. A weight, which comes from memory, takes as long as
// 16 products: what a small image of many channels waits for, and two threads read twice as fast as one.
constexpr std::int64_t kProductsPerThread = 500000;
constexpr std::int64_t kProductsPerWeight = 16;

void require(bool fine, const std::string& message) {
    if (!fine) {
        throw std::invalid_argument("winograd: " + message);
    }
}

std::int64_t divided_up(std::int64_t total, std::int64_t by) { return (total + by - 1) / by; }

}  // namespace

WinogradScratch winograd_scratch(const WinogradCall& call, std::int64_t tiles) {
    const std::int64_t n = call.positions(), K = call.inputs;
    WinogradScratch made{};
    made.weights = n * divided_up(K, kRun) * (tiles * kRun + kGap);
    made.products = made.weights + n * kWeightsStep;
    made.zeros = made.products + n * products_step(n);
    made.size = divided_up(made.zeros + K, 16) * 16;
    return made;
}

void winograd_cpu(const WinogradCall& asked, std::int64_t threads, const std::string& isa) {
    WinogradCall call = asked;
    const WinogradLoop loop = EDM_LOOP(winograd_, isa);
    require(threads >= 1 && threads <= 1024, "threads must be in [1, 1024], got " + std::to_string(threads));
    require(call.m == 1 || call.m == 2 || call.m == 4, "m must be 1, 2 or 4, got " + std::to_string(call.m));
    require(call.samples >= 0 && call.height >= 0 && call.width >= 0, "sizes must not be negative");
    require(call.inputs > 0 && call.inputs % 16 == 0,
            "inputs must be a multiple of 16, got " + std::to_string(call.inputs));
    require(call.outputs > 0, "outputs must be positive, got " + std::to_string(call.outputs));
    require(call.dtype != kFloat64, "x must be float32, float16 or bfloat16");
    const std::int64_t tiles = call.tiles();
    if (tiles == 0) {
        return;
    }
    require(call.x != 0 && call.weight != 0 && call.out != 0, "x, weight and out must be there");
    if (call.m == 1) call.samples = call.height = 1, call.width = tiles;    // pixels have no neighbours
    const std::int64_t each = tiles * call.positions() + (call.m == 1 ? 1 : 9) * kProductsPerWeight;
    const std::int64_t useful = each * call.inputs * call.outputs / kProductsPerThread + 1;
    const std::int64_t workers = useful < threads ? useful : threads;
    const std::int64_t n = call.positions();
    const std::int64_t fit = std::min(kBlockFloats / (n * call.inputs), most_tiles(n));
    std::int64_t blocks = divided_up(tiles, std::max(fit, kLeastTiles));
    const std::int64_t splits = blocks >= workers ? 1 : std::min(call.panels(), divided_up(workers, blocks));
    if (splits == 1) blocks = std::min(tiles, divided_up(blocks, workers) * workers);
    const std::int64_t units = blocks * splits, scratch = winograd_scratch(call, divided_up(tiles, blocks)).size;
    float* const memory = scratch_of(workers * scratch);     // here, because bodies must not throw
    share_out(units, workers, [&](std::int64_t unit, std::int64_t worker) {
        const std::int64_t block = unit / splits, split = unit % splits;
        loop(call, {block * tiles / blocks, (block + 1) * tiles / blocks, split * call.panels() / splits,
                    (split + 1) * call.panels() / splits}, memory + worker * scratch);
    });
}

}  // namespace edm
