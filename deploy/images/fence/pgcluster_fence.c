/*
 * A commit is acknowledged only while this instance has the right to write.
 *
 * The guard (operator/pgcluster/node/guard.py) kills postgres when that right has run out. But when
 * everything was frozen and wakes up together, a backend may run before the guard does, and tell its
 * client of a commit that another primary knows nothing of. So each backend looks at the clock by
 * itself, before it commits and again before it answers, and waits while the time is over: until the
 * right was renewed after all, or until it is killed.
 *
 * `pgcluster.lease` names a file of eight bytes, which the guard writes and never replaces: the
 * deadline in nanoseconds of CLOCK_BOOTTIME. A server that was promoted past the agent finds there
 * that it may not write. What writes nothing is not held up, and a standby commits nothing.
 *
 * Source: PostgreSQL, src/backend/access/transam/xact.c, CommitTransaction: the callback of
 * XACT_EVENT_COMMIT runs when the commit is durable, and before the client hears of it.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "access/xact.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/pmsignal.h"
#include "utils/guc.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

static const volatile int64 *deadline_ns = NULL;
static char *lease_file = NULL;

static bool
lawful(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return now.tv_sec * INT64CONST(1000000000) + now.tv_nsec < *deadline_ns;
}

static void
wait_while_unlawful(XactEvent event, void *arg)
{
	bool		before = event == XACT_EVENT_PRE_COMMIT || event == XACT_EVENT_PRE_PREPARE;
	bool		after = event == XACT_EVENT_COMMIT || event == XACT_EVENT_PREPARE;

	if (!(before || after) || !TransactionIdIsValid(GetTopTransactionIdIfAny()))
		return;
	while (!lawful())
	{
		/* A commit that is durable can neither be taken back nor be told of. */
		if (before)
			CHECK_FOR_INTERRUPTS();
		if (IsUnderPostmaster && !PostmasterIsAlive())
			_exit(1);
		pg_usleep(1000L);
	}
}

void
_PG_init(void)
{
	int			fd;
	void	   *mapped;

	if (!process_shared_preload_libraries_in_progress)
		return;
	DefineCustomStringVariable("pgcluster.lease",
							   "File with the time until which this server may write.",
							   NULL, &lease_file, "", PGC_POSTMASTER, 0, NULL, NULL, NULL);
#if PG_VERSION_NUM >= 150000
	MarkGUCPrefixReserved("pgcluster");
#else
	EmitWarningsOnPlaceholders("pgcluster");
#endif
	if (lease_file == NULL || lease_file[0] == '\0')
		return;
	fd = open(lease_file, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		ereport(FATAL, (errmsg("could not open \"%s\": %m", lease_file)));
	mapped = mmap(NULL, sizeof(int64), PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (mapped == MAP_FAILED)
		ereport(FATAL, (errmsg("could not map \"%s\": %m", lease_file)));
	deadline_ns = mapped;
	/* Backends inherit it from the postmaster. */
	RegisterXactCallback(wait_while_unlawful, NULL);
}
