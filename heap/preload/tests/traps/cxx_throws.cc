// C++ without frame pointers: threads, std::function, exceptions through frames
// that allocate, operator new with alignments.
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

struct alignas(128) Aligned { char bytes[300]; };
static std::vector<std::shared_ptr<std::string>> kept[9];

[[gnu::noinline]] static void deep(int depth, int slot, const std::function<void(int)> &then)
{
	std::string local(depth * 50 + 1, 'x');
	if (depth == 0) {
		then(slot);
		throw std::runtime_error("as meant: " + local);
	}
	std::map<int, std::string> more{{depth, local}};
	deep(depth - 1, slot, [&](int at) { then(at); });
	std::puts(more[depth].c_str());
}

static void work(int slot)
{
	for (int i = 0; i < 300; i++) {
		try {
			deep(i % 20, slot, [i](int at) {
				kept[at].push_back(std::make_shared<std::string>(2000 + i, 'y'));
				std::unique_ptr<Aligned[]> aligned(new Aligned[3]);
				if (reinterpret_cast<size_t>(aligned.get()) % 128) std::abort();
			});
		} catch (const std::exception &e) {
			if (std::string(e.what()).rfind("as meant", 0)) std::abort();
		}
	}
}

int main()
{
	std::vector<std::thread> threads;
	for (int i = 1; i < 9; i++) threads.emplace_back(work, i);
	work(0);
	for (auto &thread : threads) thread.join();
	try {
		volatile size_t huge = ~0ul / 4;
		::operator delete(::operator new(huge));
		return 1;
	} catch (const std::bad_alloc &) {
	}
	std::puts("thrown");
}
